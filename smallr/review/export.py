"""Writes the data with the decisions in it: the column `reviewed`, and edits in the place of what the machine wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import DatasetDict, Features

from smallr.core.errors import UserError
from smallr.core.files import check_new_folder, whole_file
from smallr.data.reviewed import COLUMN, EDITED, FEATURE, KEPT, STATUSES
from smallr.data.saving import save_splits
from smallr.review.decisions import CHANGED, OPEN, Decided, Outcome, outcome
from smallr.review.folders import ReviewSet
from smallr.review.rows import Kind, Row


def reviewed_values(kind: Kind, row: Row, found: Outcome) -> dict[str, Any]:
    """Returns a row with what people have made of it; what an earlier review has left stays where nobody decided anew."""
    earlier = row.values.get(COLUMN)
    if found.status == OPEN and isinstance(earlier, Mapping):
        return dict(row.values)
    values: Mapping[str, Any] = row.values
    if found.status == EDITED:
        values = kind.edited(values, found.text)
    elif found.is_kept:
        values = kind.accepted(values)
    status = found.status if found.status in STATUSES else ""
    original = row.text if found.status == EDITED else ""
    reviewed = {"status": status, "by": list(found.by), "when": found.when, "original": original}
    return {**values, COLUMN: reviewed}


def export(reviewed: ReviewSet, decided: Decided, target: Path, *, accepted_only: bool = False) -> Counter[str]:
    """Writes the rows with their decisions.

    Args:
      reviewed: the rows.
      decided: everybody's decisions.
      target: a data set for `load_from_disk`, with the splits of the source; a name that ends in .jsonl: one file of JSON
        lines, with a column `split`. A set of JSON lines can only become a file.
      accepted_only: leave out rows that are not accepted or edited.

    Returns:
      The number of rows by status, of those that were left out too.

    Raises:
      UserError: something else is in the target's place, nothing would be written, or an edit cannot be used.
    """
    is_file = target.suffix == ".jsonl"
    if not is_file and not reviewed.features:
        raise UserError(f"--export={target}: {reviewed.path} holds JSON lines; name a file that ends in .jsonl")
    if is_file and target.is_file() and target.samefile(reviewed.path):
        raise UserError(f"--export={target} is what is reviewed: name another file, so that the original stays")
    counts: Counter[str] = Counter()
    splits: dict[str, list[dict[str, Any]]] = {row.split: [] for row in reviewed.rows}
    for row in reviewed.rows:
        found = outcome(row, decided)
        counts[found.status] += 1
        values = reviewed_values(reviewed.kind, row, found)
        if values[COLUMN]["status"] in KEPT or not accepted_only:
            splits[row.split].append(values)
    if not any(splits.values()):
        advice = "decide on some first" if not counts[CHANGED] else "they have changed since: review them again"
        raise UserError(f"--accepted_only: no row of {reviewed.path} is accepted or edited; {advice}")
    if is_file:
        with whole_file(target) as file:
            for split, rows in splits.items():
                file.writelines(json.dumps({**row, "split": split}) + "\n" for row in rows)
    else:
        check_new_folder(target)
        save_splits(
            DatasetDict({name: _data_set(rows, reviewed.features[name]) for name, rows in splits.items()}), target
        )
    return counts


def _data_set(rows: list[dict[str, Any]], features: Features) -> datasets.Dataset:
    wanted = Features({**features, COLUMN: FEATURE})
    return datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in wanted}, features=wanted)
