"""Reads the rows of a run: those that are trained on, and those that are held out.

Defaults of the built-in data belong to it: with other data a run trains on the whole split and holds out nothing, unless
`data.eval`, `data.eval_split` or `data.eval_fraction` say so. No held-out row is trained on. `data.train` may be a list of
sources, each with fields of its own; what a source does not say, the fields of `data` say for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.data.errors import nearest
from smallr.data.reviewed import kept_rows
from smallr.data.sources import is_builtin, is_single, load_part

SOURCE_FIELDS = ("path", "split", "columns", "format", "weight")


@dataclasses.dataclass(frozen=True)
class Part:
    """Names a part of a source of rows.

    Attributes:
      source: as `data.train` names it.
      split: name, or a part of it.
      name: for messages: the source, with the split where two parts are of one source.
      columns: our name -> the source's name, where they differ.
      format: how its columns are read; empty: found out from them.
      weight: how often an epoch has its examples.
    """

    source: str
    split: str
    name: str = ""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    format: str = ""
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class SplitRows:
    """Holds the rows of a part.

    Attributes:
      part: what they are.
      rows: under our column names.
      available: rows of the whole split of the source; 0: as many as there are here.
      numbers: of each row in the whole split; empty: they count from 0.
      review: what `data.require_review` has left out, in words; empty: nothing was asked for.
    """

    part: Part
    rows: datasets.Dataset
    available: int = 0
    numbers: Sequence[int] = ()
    review: str = ""


def training_parts(config: ConfigDict) -> tuple[Part, ...]:
    """Returns the parts of `data.train` that are trained on, held-out rows not yet taken out.

    Raises:
      UserError: an entry of `data.train` that cannot be read.
    """
    data = config.data
    several = not isinstance(data.train, str)
    if several and not (isinstance(data.train, Sequence) and data.train):
        raise UserError(f"config.data.train={data.train!r}: give a source, or a list of {{'path': …, 'weight': …}}")
    entries = [_checked(entry, i) for i, entry in enumerate(data.train)] if several else [{"path": data.train}]
    parts = []
    for entry in entries:
        default = data.builtin.train if is_builtin(entry["path"]) else "train"
        split = entry.get("split") or data.train_split or default
        twice = [each["path"] for each in entries].count(entry["path"]) > 1
        parts.append(
            Part(
                source=entry["path"],
                split=split,
                name=f"{entry['path']} {split}" if twice else entry["path"],
                columns=_renamed({**_columns_of(config, entry["path"]), **entry.get("columns", {})}),
                format=entry.get("format", data.get("format", "")),
                weight=float(entry.get("weight", 1)),
            )
        )
    return tuple(parts)


def _checked(entry: Any, index: int) -> dict[str, Any]:
    """Returns an entry of `data.train` as a dict of fields of the right types.

    Raises:
      UserError: it is none.
    """
    where = f"config.data.train[{index}]"
    if not isinstance(entry, Mapping | ConfigDict):
        raise UserError(f"{where}: expected fields like {{'path': 'rows.jsonl', 'weight': 2}}, found {entry!r}")
    fields = dict(entry.items())
    if unknown := [name for name in fields if name not in SOURCE_FIELDS]:
        hint = "; all sources are of the kind config.data.kind" if unknown[0] == "kind" else ""
        near = nearest(unknown[0], SOURCE_FIELDS)
        raise UserError(f"{where}: {unknown[0]!r} must be one of: {', '.join(SOURCE_FIELDS)}{near}{hint}")
    for name in ("path", "split", "format"):
        if not isinstance(fields.get(name, ""), str) or (name == "path" and not fields.get(name)):
            raise UserError(f"{where}: {name} must be text, found {fields.get(name)!r}")
    if not isinstance(fields.get("columns", {}), Mapping | ConfigDict):
        raise UserError(f"{where}: columns must be fields like {{'prompt': 'question'}}, found {fields['columns']!r}")
    weight = fields.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise UserError(f"{where}: weight must be a number above 0, found {weight!r}")
    return {**fields, "columns": dict(fields.get("columns", {}).items())}


def _columns_of(config: ConfigDict, source: str) -> dict[str, str]:
    """Returns `data.columns` for a source: the map is of one's own rows; built-in ones beside them have our names."""
    train = config.data.train
    paths = [train] if isinstance(train, str) else [entry["path"] for entry in train]
    return {} if is_builtin(source) and not all(map(is_builtin, paths)) else config.data.columns.to_dict()


def _renamed(columns: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for ours, theirs in columns.items() if ours != theirs}


def heldout_part(config: ConfigDict) -> Part | None:
    """Returns the part that is held out; None if there is none, or if it is a fraction of the training rows.

    Raises:
      UserError: fields that contradict each other.
    """
    data = config.data
    if not 0 <= data.eval_fraction < 1:
        raise UserError(f"config.data.eval_fraction={data.eval_fraction}: must be at least 0 and below 1")
    if data.eval_fraction:
        if data.eval_split or data.eval not in ("auto", ""):
            raise UserError("config.data: eval_fraction takes rows of data.train; leave out eval and eval_split, or it")
        return None
    if not data.eval:
        return None
    sources = [part.source for part in training_parts(config)]
    if data.eval == "auto" and len(sources) > 1:
        if data.eval_split:
            raise UserError(
                "config.data.eval_split: of which of the sources of data.train? Name it as config.data.eval, or set "
                "config.data.eval_fraction, which takes its share of each"
            )
        return None
    source = sources[0] if data.eval == "auto" else data.eval
    if data.eval == "auto" and not data.eval_split and not is_builtin(source):
        return None
    default = data.builtin.eval if is_builtin(source) else "test"
    if source not in sources and is_single(source):
        default = "train"  # the only split of a file
    columns = _renamed(_columns_of(config, source))
    return Part(source, data.eval_split or default, source, columns, data.get("format", ""))


def has_heldout(config: ConfigDict) -> bool:
    """Returns whether the run has held-out rows."""
    return bool(config.data.eval_fraction) or heldout_part(config) is not None


def read_parts(config: ConfigDict, name: str) -> list[SplitRows]:
    """Reads the rows of each source of a split, `train` or `eval`; none if nothing is held out.

    Raises:
      UserError: rows that cannot be read, or none left.
    """
    if name == "eval" and not has_heldout(config):
        return []
    heldout, fraction = heldout_part(config), config.data.eval_fraction
    parts = training_parts(config) if name == "train" or heldout is None else [heldout]
    found = []
    for part in parts:
        told = ""
        without = heldout.split if name == "train" and heldout and heldout.source == part.source else ""
        rows, available, numbers = load_part(part.source, part.split, columns=part.columns, without=without)
        if config.data.get("require_review", False) and part is not heldout:
            chosen, told = kept_rows(rows, part.name, numbers)
            rows, numbers = rows.select(chosen), [numbers[i] for i in chosen]
        if fraction:
            held = _drawn(len(rows), fraction, config.seed)
            chosen = sorted(held) if name == "eval" else [i for i in range(len(rows)) if i not in held]
            rows, numbers = rows.select(chosen), [numbers[i] for i in chosen]
        found.append(SplitRows(part, rows, available, numbers, told))
    return found


def read_rows(config: ConfigDict, name: str) -> SplitRows | None:
    """Reads the rows of a split that has one source, `train` or `eval`; None if nothing is held out.

    Raises:
      UserError: rows that cannot be read, or several sources.
    """
    found = read_parts(config, name)
    if len(found) > 1:
        raise UserError(
            "config.data.train: labels are made for rows of one source; write them with `smallr labels` first"
        )
    return found[0] if found else None


def _drawn(count: int, fraction: float, seed: int) -> set[int]:
    """Returns the rows that a fraction holds out, drawn by the seed."""
    size = round(fraction * count)
    if size in (0, count):
        raise UserError(f"config.data.eval_fraction={fraction}: of {count} rows it leaves one of the parts empty")
    return set(np.random.default_rng(seed).permutation(count)[:size].tolist())
