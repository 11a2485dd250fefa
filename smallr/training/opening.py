"""Opens any model by its name: what `open_model` finds, and what training left (runs, their checkpoints, adapters)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.models.loading import ModelSource, ReadParameter, load_decoder, open_model
from smallr.models.lora import LoRA, merged, projections, targets
from smallr.models.peft import CONFIG, base_of, read_adapter
from smallr.models.projection import adapter_name
from smallr.models.quantized import rounded
from smallr.training.digest import tree_digest
from smallr.training.saved import SavedRun, find_run


def open_trained(name: str, tokenizer: str = "", *, allow_nonfinite: bool = False) -> ModelSource:
    """Returns the source of a model, or of what training made of one; adapters are merged into their base.

    Args:
      name: a run's workdir (its newest intact checkpoint), one of its checkpoints' folders, an adapter in PEFT's format,
        or a model as `open_model` takes it. What a run began from may again be any of these.
      tokenizer: a folder or hub id whose tokenizer comes in place of the model's own, or of the run's.
      allow_nonfinite: take NaN and infinite weights as they are.

    Raises:
      UserError: no such model, a run without an intact checkpoint, one that trained soft prompts, or one whose base has
        changed.
    """
    path = Path(name).expanduser()
    run = find_run(path)
    if run is not None:
        return source_of(run, name, tokenizer, allow_nonfinite=allow_nonfinite)
    if (path / CONFIG).exists():
        source = open_trained(base_of(path), tokenizer, allow_nonfinite=allow_nonfinite)
        return dataclasses.replace(source, name=name, open_parameters=lambda: adapted_params(path, source))
    return open_model(name, tokenizer, allow_nonfinite=allow_nonfinite)


def source_of(run: SavedRun, name: str, tokenizer: str = "", *, allow_nonfinite: bool = False) -> ModelSource:
    """Returns the source of a run that was found; see `open_trained`.

    Raises:
      UserError: see `open_trained`.
    """
    if "soft" in run.config:
        raise UserError(
            f"{name} trained soft prompts, which cannot be merged into weights: `smallr generate --adaptive` "
            "takes it, `smallr convert --adapter_only` exports it"
        )
    source = base_source(run, tokenizer, allow_nonfinite=allow_nonfinite)
    return dataclasses.replace(source, name=name, open_parameters=lambda: run_params(run, source))


def base_source(run: SavedRun, tokenizer: str = "", *, allow_nonfinite: bool = False) -> ModelSource:
    """Returns the source of the model that a run began from.

    Raises:
      UserError: it is not there.
    """
    config = run.config
    finite = not (allow_nonfinite or config.get("allow_nonfinite", False))
    return open_trained(config["model"], tokenizer or config.get("tokenizer", ""), allow_nonfinite=not finite)


def run_params(run: SavedRun, source: ModelSource) -> ReadParameter:
    """Parameters of a run: from its checkpoint, and those that it left frozen from the model that it began with."""
    prefix = "params/"
    saved = {leaf.removeprefix(prefix).replace("/", ".") for leaf in run.checkpoint.leaves if leaf.startswith(prefix)}

    def read(path: str) -> np.ndarray:
        return run.checkpoint.read(prefix + path.replace(".", "/"))

    if not run.checkpoint.metadata.get("frozen"):
        return read
    if jax.process_count() > 1:
        raise UserError(
            f"{run.workdir} has only what it trained of a frozen model, which cannot be read on several hosts: convert it "
            "first (smallr convert) and give the folder"
        )
    state = load(source)
    frozen = nnx.from_flat_state([(path, leaf) for path, leaf in state.items() if ".".join(path) not in saved])
    if tree_digest(frozen) != run.checkpoint.metadata["frozen"]:
        raise UserError(
            f"model {source.name} is not the one that {run.workdir} was trained from: its parameters have changed"
        )
    base = loaded_params(state)
    if "lora" in run.config:
        from smallr.training.policy import lora_of  # which imports what training needs

        base = quantised_params(base, source, run.config["lora"]["base"])
        return merge(base, source, lora_of(run.config["lora"]), lambda path: saved_pair(run, path))
    return lambda path: read(path) if path in saved else base(path)


def quantised_params(base: ReadParameter, source: ModelSource, format: str) -> ReadParameter:
    """Returns the parameters that a run with a quantised base computes with."""
    rows = projections(source.config)
    return lambda path: rounded(base(path), format, rows[path].inputs) if path in rows else base(path)


def saved_pair(run: SavedRun, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a and b of a projection's adapter from a run's checkpoint."""
    owner, _, name = path.rpartition(".")
    folder = f"params/{owner.replace('.', '/')}/{adapter_name(name)}"
    return run.checkpoint.read(f"{folder}/a"), run.checkpoint.read(f"{folder}/b")


def adapted_params(folder: Path, source: ModelSource) -> ReadParameter:
    """Parameters of a model with the adapters of a PEFT folder merged."""
    state = load(source)
    lora, pairs = read_adapter(folder, source.config, tree_digest(nnx.from_flat_state(list(state.items()))))
    return merge(loaded_params(state), source, lora, lambda path: pairs[path])


def merge(
    base: ReadParameter, source: ModelSource, lora: LoRA, pair: Callable[[str], tuple[np.ndarray, np.ndarray]]
) -> ReadParameter:
    """Returns the base's parameters with what the adapters add."""
    adapted = targets(source.config, lora)
    return lambda path: merged(base(path), *pair(path), lora.scale) if path in adapted else base(path)


def load(source: ModelSource) -> dict[tuple[str, ...], nnx.Variable]:
    """Returns the parameters of a model by their paths, over all devices."""
    mesh = make_mesh(1, -1, 1)
    with jax.set_mesh(mesh):
        return dict(nnx.to_flat_state(nnx.state(load_decoder(source, mesh))))


def loaded_params(state: dict[tuple[str, ...], nnx.Variable]) -> ReadParameter:
    """Reads from loaded parameters; each is freed when it was read."""
    return lambda path: np.asarray(state.pop(tuple(path.split("."))).get_value())
