"""Decides whether a run may go on from the checkpoints of its workdir: the same model, data and objective as before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from smallr.config import to_plain
from smallr.core.errors import UserError
from smallr.core.files import FileError, read_json, write_text
from smallr.training.optimizer import Horizon
from smallr.training.progress import table

_ABSENT = "(absent)"


@dataclasses.dataclass(frozen=True)
class Difference:
    """Describes a field of the configuration that has changed; `_ABSENT` stands for no such field."""

    field: str
    saved: Any
    current: Any


# Fields and groups of fields that may differ when a run goes on: how long it is, what is logged, measured and saved on the
# way, where it runs, and what changes its speed alone. A checkpoint is tied to all others, those of later versions included.
FREE = (
    "steps",
    "epochs",
    "optimizer.on_extend",
    "optimizer.shard_over_data",
    "log_every",
    "eval_every",
    "data.eval",
    "data.eval_split",
    "data.builtin.eval",
    "benchmark",
    "track",
    "best",
    "checkpoint",
    "mesh",
    "compute.remat",
    "compute.attention",
    "compute.logp_chunk",
    "labels.decode_slots",
)
# Fields that came when there were runs already, and the values by which such a run goes on as it began.
ADDED = {"data.require_review": False, "mesh.context": 1, "optimizer.name": "adamw", "optimizer.shard_over_data": False}
# What runs of that time computed with: nothing was measured then.
_UNMEASURED = {"impl": "auto", "device": "", "sequences": 0}


def compare_configs(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[list[Difference], list[Difference]]:
    """Returns the fields that differ, sorted by name: those that a checkpoint is tied to, and those of `FREE`.

    A saved configuration from before a field of `ADDED` has the value that means the same.

    Args:
      saved: nested configuration of the checkpoint.
      current: nested configuration of this run.
    """
    before, now = (_flat(json.loads(json.dumps(config))) for config in (saved, current))  # tuples are lists
    before = {field: value for field, value in ADDED.items() if field in now} | before
    differences = [
        Difference(field, before.get(field, _ABSENT), now.get(field, _ABSENT))
        for field in sorted(before.keys() | now.keys())
        if field not in before or field not in now or before[field] != now[field]
    ]
    tied = [difference for difference in differences if not _is_under(difference.field, FREE)]
    return tied, [difference for difference in differences if difference not in tied]


@dataclasses.dataclass(frozen=True)
class Earlier:
    """Holds what `config.json` says of the run that made the checkpoints of a workdir.

    Attributes:
      config: nested configuration.
      data: fingerprint of its tokenised training data.
      horizons: of its learning rate.
      attention: that it computed with (`training.attention.to_json`); of no device where none was measured.
    """

    config: Mapping[str, Any]
    data: str
    horizons: tuple[Horizon, ...]
    attention: Mapping[str, Any]


def earlier_run(workdir: str | Path) -> Earlier | None:
    """Reads `config.json` (see `save_config`); None for a workdir without checkpoints.

    Raises:
      UserError: the file is missing or broken.
    """
    workdir = Path(workdir)
    if not any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
        return None
    path = workdir / "config.json"
    try:
        saved = read_json(path, fields={"config": dict, "data_fingerprint": str, "horizons": list})
        horizons = tuple(Horizon(**fields) for fields in saved["horizons"])
        if not all(isinstance(each.start, int) and isinstance(each.steps, int) for each in horizons):
            raise TypeError("'horizons' holds something else than numbers of steps")
        return Earlier(saved["config"], saved["data_fingerprint"], horizons, saved.get("attention", _UNMEASURED))
    except (FileError, TypeError) as error:
        raise UserError(
            f"{workdir} has checkpoints, but {path.name} cannot be used ({error}), so it is not known which configuration "
            "made them; restore the file or use another workdir"
        ) from error


def check_config(workdir: str | Path, earlier: Earlier, config: Any) -> list[str]:
    """Compares a run's configuration (a ConfigDict or a mapping) with that of the checkpoints in its workdir.

    Returns:
      Notes on the changes that are allowed.

    Raises:
      UserError: a field that a checkpoint is tied to has changed.
    """
    tied, free = compare_configs(earlier.config, to_plain(config))
    if tied:
        rows = [(d.field, _show(d.saved), _show(d.current)) for d in tied]
        raise UserError(
            f"{workdir} holds checkpoints of a run with another configuration:\n"
            f"{table(('field', 'checkpoint', 'this run'), rows)}\n"
            "Set these fields back to go on from there, or use another workdir to start anew."
        )
    return [f"config.{d.field} is {_show(d.current)}, was {_show(d.saved)} before resuming" for d in free]


def check_data(workdir: str | Path, earlier: Earlier, config: Any, fingerprint: str) -> None:
    """Raises UserError where the tokenised training data are not those of the checkpoints."""
    if fingerprint != earlier.data:
        raise UserError(
            f"the training data ({_data_name(to_plain(config))}) is not what the checkpoints in {workdir} were trained on, "
            f"though the configuration is the same: its tokenised rows have the fingerprint {fingerprint[:12]}, the run's "
            f"were {earlier.data[:12]}. The rows, or the tokenizer, have changed. Restore them to go on, or use another "
            "workdir to start anew."
        )


def save_config(
    workdir: str | Path, config: Any, fingerprint: str, horizons: Sequence[Horizon], attention: Mapping[str, Any]
) -> None:
    """Writes `workdir/config.json` (process 0 only), at once or not at all.

    It holds {"config": …, "data_fingerprint": …, "horizons": […], "attention": …}.

    Raises:
      TypeError: a field that JSON cannot hold.
    """
    if jax.process_index() != 0:
        return
    path = Path(workdir) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "config": to_plain(config),
        "data_fingerprint": fingerprint,
        "horizons": [dataclasses.asdict(horizon) for horizon in horizons],
        "attention": dict(attention),
    }
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


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
