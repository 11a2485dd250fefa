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


def question_means(records: Sequence[Record], field: str) -> list[float]:
    """Averages a number over the samples of each question, which are not independent; samples without it do not count."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record.get(field):
            found.setdefault(record["id"], []).append(record[field])
    return [sum(values) / len(values) for values in found.values()]
