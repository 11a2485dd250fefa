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
from smallr.sharding import make_mesh
from smallr.training.card import model_card
from smallr.training.saved import SavedRun, find_run

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def convert(name: str, target: Path, *, dtype: str, shard_size: str) -> str:
    """Writes the model `name` to the folder `target`.

    Args:
      name: a run's workdir, one of its checkpoints' folders, or a model as `config.model` takes it.
      target: a folder that is not there yet, or empty.
      dtype: float32, bfloat16 or float16.
      shard_size: largest weight file, e.g. 5GB.

    Returns:
      A line on what was written.

    Raises:
      UserError: whatever the user has to change.
    """
    shard_bytes = parse_size(shard_size)
    run = find_run(Path(name).expanduser())
    source = open_model(run.config["model"] if run else name)
    read = checkpoint_params(run) if run else loaded_params(source)
    card = model_card(target.name, source.name, dtype, run)
    write_model(target, source, read, dtype=dtype, shard_bytes=shard_bytes, card=card)
    origin = f"step {run.checkpoint.step} of {run.workdir}" if run else source.name
    return f"{origin} is in {target}, in {dtype}"


def checkpoint_params(run: SavedRun) -> Callable[[str], np.ndarray]:
    """Reads the parameters of a run's checkpoint by their dotted paths."""
    return lambda path: run.checkpoint.read("params/" + path.replace(".", "/"))


def loaded_params(source: ModelSource) -> Callable[[str], np.ndarray]:
    """Reads the parameters of a model by their dotted paths, each once: it is freed when it was read."""
    mesh = make_mesh(1, -1, 1)
    with jax.set_mesh(mesh):
        state = dict(nnx.to_flat_state(nnx.state(load_decoder(source, mesh))))
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
