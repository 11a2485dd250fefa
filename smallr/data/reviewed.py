"""Reads what people have decided on rows: the column `reviewed`, which `smallr review DIR --export=OUT` writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from datasets import List, Value

from smallr.data.errors import DataError, shorten

COLUMN = "reviewed"
ACCEPTED, EDITED, REJECTED, UNSURE, DISPUTED = "accepted", "edited", "rejected", "unsure", "disputed"
KEPT = (ACCEPTED, EDITED)
STATUSES = (*KEPT, REJECTED, UNSURE, DISPUTED, "")
FEATURE = {
    "status": Value("string"),  # one of STATUSES; empty: nobody has decided on the row as it is
    "by": List(Value("string")),  # reviewers, in the order of their decisions
    "when": Value("string"),  # the last of these decisions, UTC
    "original": Value("string"),  # what the machine wrote, where a person has edited it
}


def kept_rows(rows: datasets.Dataset, source: str, numbers: Sequence[int]) -> tuple[list[int], str]:
    """Returns the indices of the rows that people have accepted or edited, and what became of the others, in words.

    Args:
      rows: with the column `reviewed`.
      source: for messages.
      numbers: of the rows in the source, for messages.

    Raises:
      DataError: there is no such column, it holds something else, or no row is accepted or edited.
    """
    if COLUMN not in rows.column_names:
        raise DataError(
            f"config.data.require_review: {source} has no column {COLUMN!r}; review it with smallr review, and train on "
            "what smallr review DIR --export=OUT writes"
        )
    statuses = [_status(value, f"{source}, row {number}") for number, value in zip(numbers, rows[COLUMN], strict=True)]
    kept = [index for index, status in enumerate(statuses) if status in KEPT]
    counts = Counter(status or "not reviewed" for status in statuses)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    if not kept:
        raise DataError(
            f"config.data.require_review: none of the {len(statuses)} rows of {source} is accepted or edited ({listed}); "
            "review some with smallr review, and export again"
        )
    return kept, f"{source}: {len(kept)} of {len(statuses)} rows are kept by their review ({listed})"


def status_of(value: Any) -> Any:
    """Returns what the column says of a row, unchecked; empty where it says nothing."""
    return "" if value is None else value.get("status") if isinstance(value, Mapping) else value


def _status(value: Any, place: str) -> str:
    status = status_of(value)
    if not isinstance(status, str) or status not in STATUSES:
        raise DataError(
            f"{place}: column {COLUMN!r}: expected a status of: {', '.join(filter(None, STATUSES))}, or an empty one; "
            f"found {shorten(status)}"
        )
    return status
