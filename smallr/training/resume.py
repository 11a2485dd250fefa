"""Whether a run may go on from the checkpoints of its workdir: the same model, data and objective as before."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from smallr.core.errors import UserError
from smallr.training.progress import table

_ABSENT = "(absent)"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field of the configuration that has changed; `_ABSENT` stands for no such field."""

    field: str
    saved: Any
    current: Any


def compare_configs(
    saved: Mapping[str, Any], current: Mapping[str, Any], frozen: Sequence[str]
) -> tuple[list[Difference], list[Difference]]:
    """Fields that differ, sorted by name: those that a checkpoint is tied to, and the others.

    Args:
      saved: nested configuration of the checkpoint.
      current: nested configuration of this run.
      frozen: fields and groups of fields ("model", "data", "compute.dtype") that must not change.
    """
    before, now = (_flat(json.loads(json.dumps(config))) for config in (saved, current))  # tuples are lists
    differences = [
        Difference(field, before.get(field, _ABSENT), now.get(field, _ABSENT))
        for field in sorted(before.keys() | now.keys())
        if field not in before or field not in now or before[field] != now[field]
    ]
    tied = [difference for difference in differences if _is_under(difference.field, frozen)]
    return tied, [difference for difference in differences if difference not in tied]


def check_resume(workdir: str | Path, config: Any, fingerprint: str, frozen: Sequence[str]) -> list[str]:
    """Compares this run with the one that made the checkpoints in `workdir`.

    A workdir without checkpoints may be started with any configuration.

    Args:
      workdir: the folder with `config.json` (see `save_config`) and `checkpoints/`.
      config: this run's configuration (a ConfigDict or a mapping).
      fingerprint: of this run's tokenised training data.
      frozen: fields that must not change, as in `compare_configs`.

    Returns:
      Notes on the changes that are allowed.

    Raises:
      UserError: a frozen field or the data has changed, or `config.json` is missing or broken.
    """
    workdir = Path(workdir)
    if not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        return []
    path = workdir / "config.json"
    try:
        saved = json.loads(path.read_text())
        saved_config, saved_fingerprint = saved["config"], saved["data_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{workdir} has checkpoints, but {path.name} cannot be read ({type(error).__name__}: {error}), so it is not "
            "known which configuration made them; restore the file or use another workdir"
        ) from error
    current = _as_dict(config)
    tied, others = compare_configs(saved_config, current, frozen)
    if tied:
        rows = [(d.field, _show(d.saved), _show(d.current)) for d in tied]
        raise UserError(
            f"{workdir} holds checkpoints of a run with another configuration:\n"
            f"{table(('field', 'checkpoint', 'this run'), rows)}\n"
            "Set these fields back to go on from there, or use another workdir to start anew."
        )
    if fingerprint != saved_fingerprint:
        raise UserError(
            f"the training data ({_data_name(current)}) is not what the checkpoints in {workdir} were trained on, though "
            f"the configuration is the same: its tokenised rows have the fingerprint {fingerprint[:12]}, the run's were "
            f"{saved_fingerprint[:12]}. The rows, or the tokenizer, have changed. Restore them to go on, or use another "
            "workdir to start anew."
        )
    return [f"config.{d.field} is {_show(d.current)}, was {_show(d.saved)} before resuming" for d in others]


def save_config(workdir: str | Path, config: Any, fingerprint: str) -> None:
    """Writes `workdir/config.json` (process 0 only): {"config": …, "data_fingerprint": …}, at once or not at all.

    Raises:
      TypeError: a field that JSON cannot hold.
    """
    if jax.process_index() != 0:
        return
    path = Path(workdir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"config": _as_dict(config), "data_fingerprint": fingerprint}, indent=2, sort_keys=True)
    temporary = path.with_name("config.json.tmp")
    temporary.write_text(content + "\n")
    os.replace(temporary, path)


def _as_dict(config: Any) -> dict[str, Any]:
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _is_under(field: str, prefixes: Sequence[str]) -> bool:
    return any(field == prefix or field.startswith(f"{prefix}.") for prefix in prefixes)


def _show(value: Any) -> str:
    return value if value is _ABSENT else json.dumps(value)


def _data_name(config: Mapping[str, Any]) -> str:
    data = config.get("data")
    return str(data["train"]) if isinstance(data, Mapping) and "train" in data else "config.data"
