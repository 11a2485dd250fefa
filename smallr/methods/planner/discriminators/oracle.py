"""Judges as execution says, but for a share of the plans: how good must a discriminator be?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from smallr.methods.planner.discriminators.base import Case, Judgement
from smallr.methods.planner.task import Outcome, Task


class Oracle:
    """Says the truth about a plan with a given probability, and the opposite otherwise.

    A draw is a function of the seed, the problem and the plan: the same plan is always judged alike.

    Args:
      task: compares with the gold outcome.
      accuracy: share of true verdicts, from 0 to 1.
      seed: of the draws.
    """

    def __init__(self, task: Task, accuracy: float, seed: int = 0):
        self._task, self._accuracy, self._seed = task, accuracy, seed
        self._gold: dict[str, Outcome] = {}

    @property
    def digest(self) -> str:
        """See `Discriminator.digest`."""
        return f"oracle {self._accuracy} {self._seed}"

    def judge(self, cases: Sequence[Case]) -> Iterator[tuple[int, list[Judgement]]]:
        """See `Discriminator.judge`."""
        new = [case.problem for case in cases if case.problem.id not in self._gold]
        self._gold |= dict(zip((problem.id for problem in new), self._task.gold(new), strict=True))
        for index, case in enumerate(cases):
            judgements, wanted = [], self._gold[case.problem.id]
            for plan, outcome in zip(case.plans, case.outcomes, strict=True):
                truth = not outcome.error and not wanted.error and self._task.equal(outcome, wanted)
                said = truth if self._draw(case.problem.id, plan) < self._accuracy else not truth
                judgements.append(Judgement(said, float(said)))
            yield index, judgements

    def _draw(self, problem: str, plan: str) -> float:
        digest = hashlib.sha256(f"{self._seed}\0{problem}\0{plan}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") / 2**64
