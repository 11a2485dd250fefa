"""Exports what a user names (a run, one of its checkpoints, or any model) to a folder for the Hugging Face ecosystem."""

from __future__ import annotations

import re
from pathlib import Path

from smallr.core.errors import UserError
from smallr.models.export import write_model
from smallr.models.peft import CONFIG, base_of, write_adapter
from smallr.training.card import model_card
from smallr.training.opening import base_source, load, loaded_params, open_trained, saved_pair, source_of
from smallr.training.policy import lora_of
from smallr.training.saved import SavedRun, find_run

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
    if adapter_only:
        if run is None or "lora" not in run.config:
            raise UserError(f"--adapter_only: {name} is not a run with config.lora")
        return _write_adapter(run, target, dtype)
    if run is not None:
        base = run.config["model"]
        source = source_of(run, name, tokenizer, allow_nonfinite=allow_nonfinite)
    else:
        base = base_of(path) if (path / CONFIG).exists() else name
        source = open_trained(name, tokenizer, allow_nonfinite=allow_nonfinite)
    read = source.open_parameters() if source.open_parameters else loaded_params(load(source))
    card = model_card(target.name, base, dtype, run)
    write_model(target, source, read, dtype=dtype, shard_bytes=shard_bytes, card=card)
    origin = f"step {run.checkpoint.step} of {run.workdir}" if run else name
    note = (
        "; its heads (config.heads) are left out, since the format has no place for them"
        if run and "heads" in run.config
        else ""
    )
    return f"{origin} is in {target}, in {dtype}{note}"


def _write_adapter(run: SavedRun, target: Path, dtype: str) -> str:
    source = base_source(run)
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
    note = f"; peft needs their base as a folder too: convert {source.name}" if source.open_parameters else ""
    return f"the adapters of step {run.checkpoint.step} of {run.workdir} are in {target}, in {dtype}{note}"


def parse_size(text: str) -> int:
    """Reads a number of bytes such as 5GB or 500MiB.

    Raises:
      UserError: it is not one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", text.upper())
    if not match or float(match[1]) <= 0:
        raise UserError(f"--shard_size: {text!r} is not a size such as 5GB or 500MiB")
    return int(float(match[1]) * _UNITS[match[2]])
