"""Exports what a user names (a run, one of its checkpoints, or any model) to a folder for the Hugging Face ecosystem."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError
from smallr.core.files import check_new_folder
from smallr.models.export import write_model
from smallr.models.loading import ModelSource
from smallr.models.names import BUILT_IN, is_hub_id
from smallr.models.peft import write_adapter
from smallr.training.card import Training, adapter_card, model_card
from smallr.training.opening import base_source, load, loaded_params, open_trained, saved_pair, source_of
from smallr.training.policy import lora_of
from smallr.training.saved import SavedRun, find_run, run_config

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Says how a model is written.

    Attributes:
      dtype: float32, bfloat16 or float16.
      shard_size: largest weight file, e.g. 5GB.
      adapter_only: write a LoRA run's adapters in PEFT's format, without the base.
      base: with `adapter_only`, where PEFT finds the base: a hub id, or a folder, which is written if it is not there;
        empty: the model that the run began from, which must be one of these.
      tokenizer: a folder or hub id whose tokenizer comes in place of the model's own.
      allow_nonfinite: take NaN and infinite weights as they are.
      title: of the model card; empty: the folder's name.
    """

    dtype: str = "bfloat16"
    shard_size: str = "5GB"
    adapter_only: bool = False
    base: str = ""
    tokenizer: str = ""
    allow_nonfinite: bool = False
    title: str = ""

    def __post_init__(self) -> None:
        parse_size(self.shard_size)
        if self.base and not self.adapter_only:
            raise UserError("--base: only adapters have a base beside them; give --adapter_only too")


def convert(name: str, target: Path, **fields: Any) -> str:
    """Writes the model `name` to the folder `target`; adapters are merged into their base.

    Args:
      name: a run's workdir, one of its checkpoints' folders, an adapter in PEFT's format, or a model as
        `config.model` takes it.
      target: a folder that is not there yet, or empty.
      **fields: of `ExportOptions`: how it is written.

    Returns:
      A line on what was written.

    Raises:
      UserError: whatever the user has to change.
    """
    check_new_folder(target)
    options = ExportOptions(**fields)
    run = find_run(Path(name).expanduser())
    if options.adapter_only:
        if run is None or "lora" not in run.config:
            raise UserError(f"--adapter_only: {name} is not a run with config.lora")
        return _write_adapter(run, target, options)
    given = {"allow_nonfinite": options.allow_nonfinite}
    source = source_of(run, name, options.tokenizer, **given) if run else open_trained(name, options.tokenizer, **given)
    card = model_card(options.title or target.name, source, options.dtype, Training.of(run) if run else None)
    _write_model(target, source, options, card)
    origin = f"step {run.checkpoint.step} of {run.workdir}" if run else name
    note = (
        "; its heads (config.heads) are left out, since the format has no place for them"
        if run and "heads" in run.config
        else ""
    )
    return f"{origin} is in {target}, in {options.dtype}{note}"


def _write_model(target: Path, source: ModelSource, options: ExportOptions, card: str) -> None:
    read = source.open_parameters() if source.open_parameters else loaded_params(load(source))
    shard_bytes = parse_size(options.shard_size)
    write_model(target, source, read, dtype=options.dtype, shard_bytes=shard_bytes, card=card)


def _write_adapter(run: SavedRun, target: Path, options: ExportOptions) -> str:
    base = peft_base(run.config["model"], options.base)
    source = base_source(run, options.tokenizer, allow_nonfinite=options.allow_nonfinite)
    writes_base = not is_hub_id(base) and not (Path(base) / "config.json").is_file()
    if writes_base:  # in float32, so that it is the base that was trained on, bit for bit
        exact = dataclasses.replace(options, dtype="float32")
        _write_model(Path(base), source, exact, model_card(Path(base).name, source, "float32", None))
    write_adapter(
        target,
        source,
        lora_of(run.config["lora"]),
        lambda path: saved_pair(run, path),
        base=base,
        # Another base may be the same in another dtype: the adapter is then not tied to the one that it was trained on.
        digest=run.checkpoint.metadata["frozen"] if writes_base or not options.base else "",
        dtype=options.dtype,
        card=adapter_card(options.title or target.name, source, options.dtype, Training.of(run), base),
    )
    note = f"; their base is in {base}, in float32" if writes_base else f"; their base is {base}"
    return f"the adapters of step {run.checkpoint.step} of {run.workdir} are in {target}, in {options.dtype}{note}"


def peft_base(model: str, given: str = "") -> str:
    """Returns the name by which PEFT finds the base of adapters: a hub id, or the absolute path of a folder.

    Args:
      model: that the run began from, as `config.model` names it.
      given: what comes in its place; the path of a folder that is not there is returned as it is to be written.

    Raises:
      UserError: the base is something that PEFT cannot load: a run, a .gguf file, a built-in model.
    """
    name = given or model
    path = Path(name).expanduser()
    if path.exists() and run_config(path) is None and (path / "config.json").is_file():
        return str(path.resolve())
    if name not in BUILT_IN and not path.exists() and is_hub_id(name):
        return name
    if given and name not in BUILT_IN:
        check_new_folder(path)
        return str(path.resolve())
    raise UserError(
        f"PEFT cannot load the adapters' base {name}, which is neither on the hub nor a folder in Hugging Face layout: add "
        "--base=FOLDER, where it is written too (or give --base=OWNER/NAME, where it is on the hub)"
    )


def parse_size(text: str) -> int:
    """Reads a number of bytes such as 5GB or 500MiB.

    Raises:
      UserError: it is not one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", text.upper())
    if not match or float(match[1]) <= 0:
        raise UserError(f"--shard_size: {text!r} is not a size such as 5GB or 500MiB")
    return int(float(match[1]) * _UNITS[match[2]])
