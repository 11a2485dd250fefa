"""Keeps adaptive modules on disk: `adaptive.json` beside soft prompts in PEFT's format, written from a run and read back.

`adaptive.json` says what kind of module it is, of which model, its formats and choices. Beside it lies the soft prompt
of a router; those of the modes, where the student has them, are in the folders `answer` and `think`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from smallr.core.errors import UserError
from smallr.core.files import FileError, read_json
from smallr.data.encode import Encoder, choice_ids
from smallr.data.orders import FORMATS, PROMPT
from smallr.methods.adaptive.interface import MODES
from smallr.models.config import DecoderConfig
from smallr.models.export import new_folder, write_json
from smallr.models.prompt_tuning import read_soft_prompt, write_soft_prompt
from smallr.training.card import Training, adapter_card
from smallr.training.opening import open_trained
from smallr.training.saved import SavedRun

FILE = "adaptive.json"
Kind = Literal["router", "mode_prompts"]
Vectors = dict[str, Float[np.ndarray, "vectors D"]]  # by "router" and the modes


@dataclasses.dataclass(frozen=True)
class Description:
    """Holds what `adaptive.json` says.

    Attributes:
      kind: router or mode_prompts.
      model: that it was trained on, as `config.model` names it.
      tokenizer: a folder or hub id in place of the model's own; empty: none.
      chat: whether questions are messages of a user.
      formats: of the two orders.
      prompt: of the router, see `data.chat.choice_pieces`.
      choices: the texts for answering and for thinking, and `choice_ids`, their first tokens.
      threshold: score above which the student thinks.
    """

    kind: Kind
    model: str
    chat: bool
    formats: Mapping[str, str]
    tokenizer: str = ""
    prompt: str = PROMPT
    choices: tuple[str, ...] = ()
    choice_ids: tuple[int, ...] = ()
    threshold: float = 0.0


def described(run: SavedRun) -> Description:
    """Describes the module that a run trained.

    Raises:
      UserError: it trained none.
    """
    config, data = run.config, run.config["data"]
    shared = {"model": config["model"], "tokenizer": config.get("tokenizer", ""), "chat": data["chat"]}
    if "soft" in config and data["kind"] == "choice":
        tokenizer = open_trained(shared["model"], shared["tokenizer"]).tokenizer()
        ids = choice_ids(Encoder(tokenizer), data["choices"])
        formats = config.get("student", {}).get("formats", FORMATS)
        return Description(
            "router", **shared, formats=formats, prompt=data["prompt"], choices=tuple(data["choices"]), choice_ids=ids
        )
    if "soft" in config and data["kind"] == "rationale" and data["order"] == "both":
        return Description("mode_prompts", **shared, formats=data["formats"])
    raise UserError(
        f"{run.workdir} trained no adaptive module: it has config.data.kind={data['kind']}; a router has kind choice, mode "
        "prompts have kind rationale in both orders, and either has config.soft"
    )


def run_vectors(run: SavedRun, kind: Kind, config: DecoderConfig, digest: str) -> Vectors:
    """Returns the soft prompts of a run, and those of the modes of its student.

    Raises:
      UserError: the model is not the one that they were trained on.
    """
    if run.checkpoint.metadata["frozen"] != digest:
        raise UserError(
            f"{run.workdir}: the module was trained on another model ({run.config['model']}, digest "
            f"{run.checkpoint.metadata['frozen'][:12]}) than this one (digest {digest[:12]})"
        )
    vectors = run.checkpoint.read("params/soft/vectors")
    if kind == "mode_prompts":
        return dict(zip(MODES, np.split(vectors, len(MODES)), strict=True))
    prompts = run.config.get("student", {}).get("prompts", "")
    return {"router": vectors} | (mode_vectors(Path(prompts).expanduser(), config, digest) if prompts else {})


def read_description(folder: Path) -> Description:
    """Reads `adaptive.json` of a folder.

    Raises:
      UserError: it is missing or damaged.
    """
    path = folder / FILE
    try:
        description = Description(**read_json(path))
    except (FileError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); is {folder} an adaptive module, or the run of one?"
        ) from error
    if description.kind not in ("router", "mode_prompts"):
        raise UserError(f"{path}: kind {description.kind!r} must be one of: router, mode_prompts")
    return description


def read_vectors(folder: Path, kind: Kind, config: DecoderConfig, digest: str) -> Vectors:
    """Returns the soft prompts of a folder.

    Raises:
      UserError: a damaged file, or one of another model.
    """
    if kind == "mode_prompts":
        return mode_vectors(folder, config, digest)
    modes = mode_vectors(folder, config, digest) if (folder / MODES[0]).is_dir() else {}
    return {"router": read_soft_prompt(folder, config, digest)} | modes


def mode_vectors(folder: Path, config: DecoderConfig, digest: str) -> Vectors:
    """Returns a soft prompt for each mode from the subfolders of one."""
    return {mode: read_soft_prompt(folder / mode, config, digest) for mode in MODES}


def export(run: SavedRun, target: Path, dtype: str = "float32") -> str:
    """Writes the module of a run as a folder, which appears when it is complete.

    Args:
      run: of a router or of mode prompts.
      target: a folder that is not there yet, or empty.
      dtype: of the stored vectors.

    Returns:
      A line on what was written.

    Raises:
      UserError: the run trained no module, or the target is not empty.
    """
    description = described(run)
    source = open_trained(description.model, description.tokenizer)
    digest = run.checkpoint.metadata["frozen"]
    vectors = run_vectors(run, description.kind, source.config, digest)
    card = adapter_card(target.name, source, dtype, Training.of(run))
    with new_folder(target) as folder:
        for name, values in vectors.items():
            where = folder / "router" if name == "router" else folder / name
            write_soft_prompt(where, source, values, base=source.name, digest=digest, dtype=dtype, card=card)
        if "router" in vectors:  # where PEFT looks for it
            for path in sorted((folder / "router").iterdir()):
                path.rename(folder / path.name)
            (folder / "router").rmdir()
        write_json(folder / FILE, dataclasses.asdict(description))
    return f"the {description.kind.replace('_', ' ')} of step {run.checkpoint.step} of {run.workdir} are in {target}, in {dtype}"
