"""Writes the data sets that a run leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from smallr.data.saving import save_splits
from smallr.methods.crv.rows import FEATURES


def write_data_sets(folder: Path, splits: Sequence[str], rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Writes `<folder>/verified` and `<folder>/failed`, each with all splits and `FEATURES`.

    Args:
      folder: of the run.
      splits: their names.
      rows: split and output row each.
    """
    for name, failed in (("verified", False), ("failed", True)):
        parts = {split: [row for of, row in rows if of == split and bool(row["reason"]) == failed] for split in splits}
        save_splits(DatasetDict({split: _data_set(part) for split, part in parts.items()}), folder / name)


def _data_set(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    return Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)
