"""Executes candidates on further instances of their databases, and compares with what one instance says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smallr.methods.planner.rows import as_rows, execute_all
from smallr.methods.planner.sql.instances import make_instances
from smallr.methods.planner.sql.task import SqlTask
from smallr.methods.planner.task import Candidate, Problem

Rows = Sequence[Mapping[str, Any]]


def execute_on_instances(
    folder: Path,
    task: SqlTask,
    problems: Sequence[Problem],
    candidates: Sequence[Sequence[Candidate]],
    count: int,
    seed: int,
) -> list[list[dict[str, Any]]]:
    """Makes instances in a folder, and returns the executed rows of each."""
    files: dict[str, list[Path]] = {}
    for source in dict.fromkeys(problem.source for problem in problems):
        files[source] = make_instances(Path(source), task.tables(source), folder, count, seed)
    found = []
    for number in range(count):
        moved = [dataclasses.replace(problem, source=str(files[problem.source][number])) for problem in problems]
        found.append(as_rows(task, moved, execute_all(task, moved, candidates)))
    return found


def with_all_instances(executed: Rows, instances: Sequence[Rows]) -> list[dict[str, Any]]:
    """Returns the rows with candidates counted as correct only if they are on every instance where the gold plan runs."""
    rows = []
    for number, row in enumerate(executed):
        others = [instance[number]["candidates"] for instance in instances]
        candidates = []
        for place, each in enumerate(row["candidates"]):
            labels = [each["correct"], *(other[place]["correct"] for other in others)]
            known = [label for label in labels if label is not None]
            candidates.append({**each, "correct": all(known) if each["correct"] is not None else None})
        rows.append({**row, "candidates": candidates})
    return rows


def agreement(executed: Rows, instances: Sequence[Rows]) -> dict[str, Any]:
    """Counts candidates that are right on the given database and wrong on an instance."""
    every = with_all_instances(executed, instances)
    pairs = [
        (before["correct"], after["correct"], row["id"])
        for row, now in zip(executed, every, strict=True)
        for before, after in zip(row["candidates"], now["candidates"], strict=True)
        if before["correct"] is not None
    ]
    lost = [identifier for before, after, identifier in pairs if before and not after]
    return {
        "instances": len(instances),
        "right_on_one": sum(before for before, _, _ in pairs),
        "right_on_all": sum(after for _, after, _ in pairs),
        "lost": len(lost),
        "questions_with_lost": sorted(set(lost), key=lost.index),
        "gold_empty_everywhere": [
            row["id"]
            for number, row in enumerate(executed)
            if all(each["gold_empty"] for each in (row, *(instance[number] for instance in instances)))
        ],
    }
