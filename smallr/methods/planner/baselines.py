"""Picks that need no discriminator, with which every discriminator is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from smallr.methods.planner.rows import Executed

Pick = Callable[[Sequence[Executed]], int | None]


def first(candidates: Sequence[Executed]) -> int | None:
    """Picks the first candidate."""
    return 0 if candidates else None


def first_executable(candidates: Sequence[Executed]) -> int | None:
    """Picks the first candidate that executes; the first of all where none does."""
    return next((i for i, each in enumerate(candidates) if not each.error), first(candidates))


def executable_best_of_n(candidates: Sequence[Executed]) -> int | None:
    """Picks the most proposed of the candidates that execute and return something, else of those that execute.

    Of several the first. Proposals count as they were made, before plans with one normal form were joined.
    """
    for wanted in (lambda each: not each.error and not each.empty, lambda each: not each.error, lambda each: True):
        found = [index for index, each in enumerate(candidates) if wanted(each)]
        if found:
            return max(found, key=lambda index: (candidates[index].votes, -index))
    return None


def majority(candidates: Sequence[Executed], *, weighted: bool = True) -> int | None:
    """Picks the first candidate of the result that most proposals come to; failures do not vote.

    Of several such results the one that was proposed first counts. Without `weighted` each different plan has one vote.
    """
    votes: dict[int, int] = {}
    for each in candidates:
        if each.group >= 0:
            votes[each.group] = votes.get(each.group, 0) + (each.votes if weighted else 1)
    if not votes:
        return first(candidates)
    group = max(votes, key=lambda number: (votes[number], -number))
    return next(index for index, each in enumerate(candidates) if each.group == group)


def majority_of_plans(candidates: Sequence[Executed]) -> int | None:
    """Picks by `majority` with one vote for each different plan."""
    return majority(candidates, weighted=False)


BASELINES: Mapping[str, Pick] = {
    "first candidate": first,
    "first executable": first_executable,
    "executable best-of-N": executable_best_of_n,
    "majority of plans": majority_of_plans,
    "majority of proposals": majority,
}
