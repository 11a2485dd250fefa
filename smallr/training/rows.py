"""Reads the rows of a run: those that are trained on, and those that are held out.

Defaults of the built-in data belong to it: with other data a run trains on the whole split and holds out nothing, unless
`data.eval`, `data.eval_split` or `data.eval_fraction` say so. No held-out row is trained on.
"""

from __future__ import annotations

import dataclasses

import datasets
import numpy as np
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.data.sources import is_builtin, is_single, load_part


@dataclasses.dataclass(frozen=True)
class Part:
    """Names a part of a source of rows.

    Attributes:
      source: as `data.train` names it.
      split: name, or a part of it.
    """

    source: str
    split: str


@dataclasses.dataclass(frozen=True)
class SplitRows:
    """Holds the rows of a part, under our column names, and how many rows the whole split of the source has."""

    part: Part
    rows: datasets.Dataset
    available: int


def training_part(config: ConfigDict) -> Part:
    """Returns the part of `data.train` that is trained on, held-out rows not yet taken out."""
    data = config.data
    default = data.builtin.train if is_builtin(data.train) else "train"
    return Part(data.train, data.train_split or default)


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
    source = data.train if data.eval == "auto" else data.eval
    if data.eval == "auto" and not data.eval_split and not is_builtin(source):
        return None
    default = data.builtin.eval if is_builtin(source) else "test"
    if source != data.train and is_single(source):
        default = "train"  # the only split of a file
    return Part(source, data.eval_split or default)


def has_heldout(config: ConfigDict) -> bool:
    """Returns whether the run has held-out rows."""
    return bool(config.data.eval_fraction) or heldout_part(config) is not None


def read_rows(config: ConfigDict, name: str) -> SplitRows | None:
    """Reads the rows of a split, `train` or `eval`; None if nothing is held out.

    Raises:
      UserError: rows that cannot be read, or none left.
    """
    if name == "eval" and not has_heldout(config):
        return None
    training, heldout = training_part(config), heldout_part(config)
    renamed = {ours: theirs for ours, theirs in config.data.columns.items() if ours != theirs}
    part = training if name == "train" or heldout is None else heldout
    same = heldout is not None and heldout.source == training.source
    without = heldout.split if name == "train" and same else ""
    if is_builtin(part.source) and not is_builtin(training.source):
        renamed = {}  # the map is of the training rows; built-in held-out rows beside them have our names
    rows, available = load_part(part.source, part.split, columns=renamed, without=without)
    if fraction := config.data.eval_fraction:
        held = _drawn(len(rows), fraction, config.seed)
        rows = rows.select(sorted(held) if name == "eval" else [i for i in range(len(rows)) if i not in held])
    return SplitRows(part, rows, available)


def _drawn(count: int, fraction: float, seed: int) -> set[int]:
    """Returns the rows that a fraction holds out, drawn by the seed."""
    size = round(fraction * count)
    if size in (0, count):
        raise UserError(f"config.data.eval_fraction={fraction}: of {count} rows it leaves one of the parts empty")
    return set(np.random.default_rng(seed).permutation(count)[:size].tolist())
