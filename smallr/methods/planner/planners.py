"""The planners: ways to come to one plan with a generator and a discriminator. None of them knows the task."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from smallr.methods.planner.task import Candidate, Outcome, Problem, Task, Write

Judge = Callable[[Problem, Sequence[str], Sequence[Outcome]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits of a search.

    Attributes:
      candidates: proposals asked for at once (N).
      rounds: of `iterative`.
      accept: score from which `iterative` stops.
      patience: rounds without a better plan after which `iterative` stops.
      expansions: of `tree`.
    """

    candidates: int = 5
    rounds: int = 10
    accept: float = 0.99
    patience: int = 3
    expansions: int = 50


@dataclasses.dataclass
class Search:
    """One search for a plan: its tools, what it has scored so far, and what it has cost.

    Attributes:
      scored: plan -> score; no plan is executed or judged twice.
      outcomes: plan -> outcome.
      trace: what happened, in order, in JSON's types.
    """

    task: Task
    write: Write
    judge: Judge
    problem: Problem
    budget: Budget
    scored: dict[str, float] = dataclasses.field(default_factory=dict)
    outcomes: dict[str, Outcome] = dataclasses.field(default_factory=dict)
    trace: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    proposals: int = 0
    expansions: int = 0

    def propose(self, count: int, **how: Any) -> list[Candidate]:
        """Asks the generator; `how` as in `Task.propose`."""
        candidates = self.task.propose(self.problem, self.write, count, **how)
        self.proposals += count
        plans, votes = [each.plan for each in candidates], [each.votes for each in candidates]
        self.trace.append({"event": "propose", **how, "plans": plans, "votes": votes})
        return candidates

    def score(self, plans: Sequence[str]) -> list[float]:
        """Executes and judges the plans that are new."""
        new = [plan for plan in dict.fromkeys(plans) if plan not in self.scored]
        if new:
            (outcomes,) = self.task.execute([(self.problem, new)])
            self.outcomes |= dict(zip(new, outcomes, strict=True))
            self.scored |= dict(zip(new, self.judge(self.problem, new, outcomes), strict=True))
            self.trace.append({"event": "score", "scores": {plan: self.scored[plan] for plan in new}})
        return [self.scored[plan] for plan in plans]


def best(plans: Sequence[str], scores: Sequence[float]) -> int | None:
    """Returns the index of the best score; of several the plan that comes first in the alphabet. None if there is none."""
    return min(range(len(plans)), key=lambda index: (-scores[index], plans[index]), default=None)


def greedy(search: Search) -> str | None:
    """Takes the one plan that the generator writes."""
    candidates = search.propose(1)
    return candidates[0].plan if candidates else None


def rerank(search: Search) -> str | None:
    """Takes the best-scored of N plans."""
    plans = [candidate.plan for candidate in search.propose(search.budget.candidates)]
    chosen = best(plans, search.score(plans))
    return None if chosen is None else plans[chosen]


def iterative(search: Search) -> str | None:
    """Shows the best plan so far to the generator as wrong, round after round, and keeps what scores higher."""
    kept, top, stale = "", float("-inf"), 0
    for round in range(search.budget.rounds):
        count = search.budget.candidates
        plans = [each.plan for each in search.propose(count, rejected=kept, round=round)]
        values = search.score(plans)
        chosen = best(plans, values)
        if chosen is not None and values[chosen] > top:
            kept, top, stale = plans[chosen], values[chosen], 0
        else:
            stale += 1
        if top >= search.budget.accept or stale >= search.budget.patience:
            break
    return kept or None


def tree(search: Search) -> str | None:
    """Searches best-first over steps.

    An expansion samples whole plans from a prefix, cuts each behind its next step, and gives that step the best score of
    the plans that took it. A plan whose last step comes out on top is taken; when the expansions are used up, the best
    whole plan that was seen.
    """
    order = itertools.count()
    queue: list[tuple[float, int, str, bool]] = [(0.0, next(order), "", False)]
    while queue and search.expansions < search.budget.expansions:
        _, _, prefix, is_whole = heapq.heappop(queue)
        if is_whole:
            return prefix
        search.expansions += 1
        plans = [
            each.plan
            for each in search.propose(search.budget.candidates, prefix=prefix, round=search.expansions)
            if _begins(search.task, each.plan, prefix)
        ]
        values: dict[tuple[str, bool], float] = {}  # (step, whether it is a whole plan)
        for plan, value in zip(plans, search.score(plans), strict=True):
            step = search.task.next_step(plan, prefix)
            key = (step, step == plan)
            values[key] = max(value, values.get(key, float("-inf")))
        for (step, is_whole), value in values.items():
            heapq.heappush(queue, (-value, next(order), step, is_whole))
    seen = list(search.scored)
    chosen = best(seen, [search.scored[plan] for plan in seen])
    return None if chosen is None else seen[chosen]


def _begins(task: Task, plan: str, prefix: str) -> bool:
    """Whether the first steps of a plan are those of a prefix."""
    step = ""
    while len(step) < len(prefix) and step != plan:
        step = task.next_step(plan, step)
    return step == prefix


# `oracle` is `rerank` with a discriminator that is right for a given share of the plans.
PLANNERS: dict[str, Callable[[Search], str | None]] = {
    "greedy": greedy,
    "rerank": rerank,
    "iterative": iterative,
    "tree": tree,
    "oracle": rerank,
}
