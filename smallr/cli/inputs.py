"""Checks what a command is given to read, before imports that take seconds, and says at once what it is about to load."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.data.specs import check_source
from smallr.models.names import check_model, check_tokenizer
from smallr.training.tracking import check_trackers


def check(field: str, reads: Callable[[str], None], name: str) -> None:
    """Checks a name with one of the functions above; the error begins with the field that has it.

    Raises:
      UserError: nothing has this name.
    """
    try:
        reads(name)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error


def check_training(config: ConfigDict) -> None:
    """Checks the models and rows that a training config names.

    Raises:
      UserError: one of them is not there.
    """
    check("config.model", check_model, config.model)
    if config.tokenizer:
        check_tokenizer(config.tokenizer)
    for field in ("train", "eval"):
        spec = config.data[field]
        if isinstance(spec, str) and spec not in ("", "auto"):
            check(f"config.data.{field}", check_source, spec)
        elif isinstance(spec, tuple | list):  # several sources; what they are made of is checked with the other fields
            for index, entry in enumerate(spec):
                if isinstance(entry, Mapping | ConfigDict) and isinstance(entry.get("path"), str):
                    check(f"config.data.{field}[{index}]", check_source, entry["path"])
    check_trackers(config.track.to)
    if "lora" in config and config.lora.adapter and not Path(config.lora.adapter).expanduser().is_dir():
        raise UserError(f"config.lora.adapter: there is no folder {config.lora.adapter}")


def check_language_model(spec: str) -> None:
    """Checks a model as `smallr.language.opening` takes it; a server is asked later.

    Raises:
      UserError: no such local model.
    """
    scheme, colon, rest = spec.partition(":")
    if scheme == "local" or not colon:
        check_model(rest if colon else spec)


def announce(text: str) -> None:
    """Prints a line to standard error at once, since the next one may be seconds away."""
    print(text, file=sys.stderr, flush=True)
