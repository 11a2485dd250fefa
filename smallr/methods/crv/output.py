"""Writes the data sets that a run leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from smallr.data.saving import save_splits
from smallr.methods.crv.grades import Selection, select
from smallr.methods.crv.rows import FEATURES


def write_data_sets(
    folder: Path,
    splits: Sequence[str],
    rows: Sequence[tuple[str, Mapping[str, Any]]],
    selection: Selection | None = None,
) -> dict[str, dict[str, int]]:
    """Writes `<folder>/verified` and `<folder>/failed`, each with all splits and `FEATURES`, and `<folder>/selected`.

    Args:
      folder: of the run.
      splits: their names.
      rows: split and output row each.
      selection: of verified rows, each split by itself; without one there is no `selected`.

    Returns:
      Of each split how many rows were selected, and how many left out for which reason.
    """
    for name, failed in (("verified", False), ("failed", True)):
        parts = {split: [row for of, row in rows if of == split and bool(row["reason"]) == failed] for split in splits}
        save_splits(DatasetDict({split: _data_set(part) for split, part in parts.items()}), folder / name)
    if selection is None:
        return {}
    chosen, counts = {}, {}
    for split in splits:
        verified = [row for of, row in rows if of == split and not row["reason"]]
        kept, left_out = select(verified, selection)
        chosen[split] = _data_set([verified[number] for number in kept])
        counts[split] = {"selected": len(kept), **left_out}
    save_splits(DatasetDict(chosen), folder / "selected")
    return counts


def _data_set(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    return Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)
