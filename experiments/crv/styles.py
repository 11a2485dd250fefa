"""Counts in which style students answer, and how often each style comes out right: built-in questions only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.crv.judge import ANSWERS, read_answers
from smallr.core.comparison import markdown
from smallr.core.stages import Stage, Stages
from smallr.data.builtin.lookup import find_problem
from smallr.data.builtin.rationales import STYLES
from smallr.data.builtin.reading import style


def by_style(path: Path) -> tuple[Counter[str], Counter[str]] | None:
    """Answers and right answers of each style; None where a question is not a built-in one.

    Args:
      path: answers as `judge` writes them.
    """
    written, right = Counter(), Counter()
    for row in read_answers(path):
        problem = find_problem(row["prompt"])
        if problem is None:
            return None
        found = style(problem, row["output"])
        written[found] += 1
        right[found] += row["correct"]
    return written, right


def styles(grid: Stages, runs: Sequence[Stage]) -> str:
    """Returns a table of all runs of each arm: the share of each style and of right answers in it; "" without rows."""
    found: dict[str, tuple[Counter[str], Counter[str]]] = {}
    for run in runs:
        path = grid.folder(run) / ANSWERS
        counts = by_style(path) if grid.is_done(run) and path.exists() else None
        if counts is not None:
            before = found.get(run.settings["arm"], (Counter(), Counter()))
            found[run.settings["arm"]] = (before[0] + counts[0], before[1] + counts[1])
    if not found:
        return ""
    headers = ["arm", "answers", *(f"{name}: share, right" for name in STYLES)]
    return markdown(
        headers, [[arm, str(written.total()), *_cells(written, right)] for arm, (written, right) in found.items()]
    )


def _cells(written: Mapping[str, int], right: Mapping[str, int]) -> list[str]:
    total = sum(written.values())
    return [
        f"{written[name] / total:.2f}, {right[name] / written[name]:.2f}" if written[name] else "0, –"
        for name in STYLES
    ]
