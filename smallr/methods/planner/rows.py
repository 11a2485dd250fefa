"""Executes the candidates of problems, and keeps what is found as rows of JSON's types."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from smallr.methods.planner.task import Candidate, Outcome, Problem, Task, groups


@dataclasses.dataclass(frozen=True)
class Executed:
    """A candidate and what its execution came to.

    Attributes:
      plan, votes: of the candidate.
      error, kind, preview, empty: of the outcome.
      group: candidates of a problem with equal results share a number; -1 for failures.
      correct: whether the result equals the gold one; None where no gold is known or it fails itself.
    """

    plan: str
    votes: int
    error: str
    kind: str
    preview: str
    empty: bool
    group: int
    correct: bool | None

    @property
    def outcome(self) -> Outcome:
        """The outcome without its value."""
        return Outcome(None, self.preview, self.error, self.kind, self.empty)


def execute_all(
    task: Task, problems: Sequence[Problem], candidates: Sequence[Sequence[Candidate]]
) -> list[list[Executed]]:
    """Executes all candidates of all problems, and judges them where a gold plan is known."""
    jobs = [
        (problem, [candidate.plan for candidate in each]) for problem, each in zip(problems, candidates, strict=True)
    ]
    outcomes = task.execute(jobs)
    known = [problem for problem in problems if problem.gold]
    gold = dict(zip((problem.id for problem in known), task.gold(known), strict=True))
    return [
        _executed(task, each, found, gold.get(problem.id))
        for problem, each, found in zip(problems, candidates, outcomes, strict=True)
    ]


def _executed(
    task: Task, candidates: Sequence[Candidate], outcomes: Sequence[Outcome], gold: Outcome | None
) -> list[Executed]:
    rows = []
    for candidate, outcome, group in zip(candidates, outcomes, groups(task, outcomes), strict=True):
        known = gold is not None and not gold.error
        correct = (not outcome.error and task.equal(outcome, gold)) if known else None
        shown = (outcome.error, outcome.kind, outcome.preview, outcome.empty)
        rows.append(Executed(candidate.plan, candidate.votes, *shown, group, correct))
    return rows


def as_rows(task: Task, problems: Sequence[Problem], executed: Sequence[Sequence[Executed]]) -> list[dict[str, Any]]:
    """Returns a row a problem: id, question, source, gold and what came of it, candidates."""
    known = [problem for problem in problems if problem.gold]
    gold = dict(zip((problem.id for problem in known), task.gold(known), strict=True))
    return [
        {
            "id": problem.id,
            "question": problem.question,
            "source": problem.source.rpartition("/")[2],
            "gold": problem.gold,
            "gold_error": gold[problem.id].error if problem.id in gold else "no gold plan is known",
            "gold_empty": problem.id in gold and gold[problem.id].empty,
            "candidates": [dataclasses.asdict(each) for each in found],
        }
        for problem, found in zip(problems, executed, strict=True)
    ]


def of_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[Executed]]:
    """Returns the candidates of rows that `as_rows` made."""
    return [[Executed(**each) for each in row["candidates"]] for row in rows]
