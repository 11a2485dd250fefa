"""From what a user names to a folder for the Hugging Face ecosystem: a run, one of its checkpoints, or any model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from smallr.errors import UserError
from smallr.models.export import write_model
from smallr.models.loading import ModelSource, load_decoder, open_model
from smallr.models.lora import LoRA, merged, projections, targets
from smallr.models.peft import CONFIG, base_of, read_adapter, write_adapter
from smallr.models.projection import adapter_name
from smallr.models.quantized import rounded
from smallr.sharding import make_mesh
from smallr.training.card import model_card
from smallr.training.digest import tree_digest
from smallr.training.policy import lora_of
from smallr.training.saved import SavedRun, find_run

Read = Callable[[str], np.ndarray]  # a parameter by its dotted path, each once

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def convert(
    name: str,
    target: Path,
    *,
    dtype: str,
    shard_size: str,
    adapter_only: bool = False,
    tokenizer: str = "",
    allow_nonfinite: bool = False,
) -> str:
    """Writes the model `name` to the folder `target`; adapters are merged into their base.

    Args:
      name: a run's workdir, one of its checkpoints' folders, an adapter in PEFT's format, or a model as
        `config.model` takes it.
      target: a folder that is not there yet, or empty.
      dtype: float32, bfloat16 or float16.
      shard_size: largest weight file, e.g. 5GB.
      adapter_only: write a LoRA run's adapters in PEFT's format, without the base.
      tokenizer: a folder or hub id whose tokenizer comes in place of the model's own.
      allow_nonfinite: take NaN and infinite weights as they are.

    Returns:
      A line on what was written.

    Raises:
      UserError: whatever the user has to change.
    """
    shard_bytes = parse_size(shard_size)
    path = Path(name).expanduser()
    run = find_run(path)
    if run is not None and "soft" in run.config:
        raise UserError(
            f"{name} trained soft prompts, which cannot be merged into weights: give --adapter-only, or "
            "`python -m smallr.generate --adaptive`"
        )
    if adapter_only:
        if run is None or "lora" not in run.config:
            raise UserError(f"--adapter-only: {name} is not a run with config.lora")
        return _write_adapter(run, target, dtype)
    saved = run.config if run else {}
    adapter = run is None and (path / CONFIG).exists()
    source = open_model(
        base_of(path) if adapter else saved.get("model", name),
        tokenizer or saved.get("tokenizer", ""),
        allow_nonfinite=allow_nonfinite or saved.get("allow_nonfinite", False),
    )
    if adapter:
        read = adapted_params(path, source)
    elif run:
        read = run_params(run, source)
    else:
        read = loaded_params(load(source))
    card = model_card(target.name, source.name, dtype, run)
    write_model(target, source, read, dtype=dtype, shard_bytes=shard_bytes, card=card)
    origin = f"step {run.checkpoint.step} of {run.workdir}" if run else name
    return f"{origin} is in {target}, in {dtype}"


def _write_adapter(run: SavedRun, target: Path, dtype: str) -> str:
    source = open_model(run.config["model"])
    lora = lora_of(run.config["lora"])
    write_adapter(
        target,
        source.config,
        lora,
        lambda path: saved_pair(run, path),
        base=source.name,
        digest=run.checkpoint.metadata["frozen"],
        dtype=dtype,
        card=model_card(target.name, source.name, dtype, run, library="peft"),
    )
    return f"the adapters of step {run.checkpoint.step} of {run.workdir} are in {target}, in {dtype}"


def run_params(run: SavedRun, source: ModelSource) -> Read:
    """Parameters of a run: from its checkpoint, and those that it left frozen from the model that it began with."""
    prefix = "params/"
    saved = {leaf.removeprefix(prefix).replace("/", ".") for leaf in run.checkpoint.leaves if leaf.startswith(prefix)}

    def read(path: str) -> np.ndarray:
        return run.checkpoint.read(prefix + path.replace(".", "/"))

    if not run.checkpoint.metadata.get("frozen"):
        return read
    if "soft" in run.config:
        raise UserError(
            f"{run.workdir} trained soft prompts of a frozen model; `python -m smallr.generate --adaptive` takes it"
        )
    state = load(source)
    frozen = nnx.from_flat_state([(path, leaf) for path, leaf in state.items() if ".".join(path) not in saved])
    if tree_digest(frozen) != run.checkpoint.metadata["frozen"]:
        raise UserError(
            f"model {source.name} is not the one that {run.workdir} was trained from: its parameters have changed"
        )
    base = loaded_params(state)
    if "lora" in run.config:
        base = quantised_params(base, source, run.config["lora"]["base"])
        return merge(base, source, lora_of(run.config["lora"]), lambda path: saved_pair(run, path))
    return lambda path: read(path) if path in saved else base(path)


def quantised_params(base: Read, source: ModelSource, format: str) -> Read:
    """The parameters that a run with a quantised base computes with."""
    rows = projections(source.config)
    return lambda path: rounded(base(path), format, rows[path].inputs) if path in rows else base(path)


def saved_pair(run: SavedRun, path: str) -> tuple[np.ndarray, np.ndarray]:
    """a and b of a projection's adapter from a run's checkpoint."""
    owner, _, name = path.rpartition(".")
    folder = f"params/{owner.replace('.', '/')}/{adapter_name(name)}"
    return run.checkpoint.read(f"{folder}/a"), run.checkpoint.read(f"{folder}/b")


def adapted_params(folder: Path, source: ModelSource) -> Read:
    """Parameters of a model with the adapters of a PEFT folder merged."""
    state = load(source)
    lora, pairs = read_adapter(folder, source.config, tree_digest(nnx.from_flat_state(list(state.items()))))
    return merge(loaded_params(state), source, lora, lambda path: pairs[path])


def merge(base: Read, source: ModelSource, lora: LoRA, pair: Callable[[str], tuple[np.ndarray, np.ndarray]]) -> Read:
    """The base's parameters with what the adapters add."""
    adapted = targets(source.config, lora)
    return lambda path: merged(base(path), *pair(path), lora.scale) if path in adapted else base(path)


def load(source: ModelSource) -> dict[tuple[str, ...], nnx.Variable]:
    """The parameters of a model by their paths, over all devices."""
    mesh = make_mesh(1, -1, 1)
    with jax.set_mesh(mesh):
        return dict(nnx.to_flat_state(nnx.state(load_decoder(source, mesh))))


def loaded_params(state: dict[tuple[str, ...], nnx.Variable]) -> Read:
    """Reads from loaded parameters; each is freed when it was read."""
    return lambda path: np.asarray(state.pop(tuple(path.split("."))).get_value())


def parse_size(text: str) -> int:
    """Bytes of a size such as 5GB or 500MiB.

    Raises:
      UserError: it is not one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", text.upper())
    if not match or float(match[1]) <= 0:
        raise UserError(f"--shard-size: {text!r} is not a size such as 5GB or 500MiB")
    return int(float(match[1]) * _UNITS[match[2]])
