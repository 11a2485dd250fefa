"""Defines the records of an evaluation: one a sample, as they are written to `samples.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Record = dict[str, Any]


def scores(records: Sequence[Record], field: str = "correct") -> dict[str, list[float]]:
    """Scores of the samples of each question that was answered or could not be, by id; results that are missing are
    left out.
    """
    found: dict[str, list[float]] = {}
    for record in records:
        if record["reason"] != "no result":
            found.setdefault(record["id"], []).append(float(record[field]))
    return found
