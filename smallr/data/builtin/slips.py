"""Makes slips: one step of a solution goes wrong, and the mistake is carried through to the answer."""

from __future__ import annotations

import dataclasses
import random

from smallr.data.builtin.problems import Problem, Step, solve

# Operations that one is mistaken for. A percentage is taken off as if it were an amount, or divided by.
_MISTAKEN = {"+": "-*", "-": "+", "*": "+", "/": "-*", "%": "-/"}


def arithmetic(problem: Problem, at: int, rng: random.Random) -> Problem:
    """Miscalculates step `at` by a little."""
    return _with_step(
        problem, at, dataclasses.replace(problem.steps[at], error=rng.choice((-20, -10, -2, -1, 1, 2, 10, 20)))
    )


def operation(problem: Problem, at: int, rng: random.Random) -> Problem:
    """Combines the right numbers of step `at` in a wrong way."""
    step = problem.steps[at]
    op = rng.choice(_MISTAKEN[step.op])
    left, right = (step.right, step.left) if step.op == "%" else (step.left, step.right)
    return _with_step(problem, at, dataclasses.replace(step, left=left, op=op, right=right))


def quantity(problem: Problem, at: int, rng: random.Random) -> Problem:
    """Takes another number that is at hand in step `at`."""
    step = problem.steps[at]
    known = [*problem.givens, *(earlier.name for earlier in problem.steps[:at])]
    others = [name for name in known if name not in (step.left, step.right)]
    side = rng.choice(("left", "right"))
    return _with_step(problem, at, dataclasses.replace(step, **{side: rng.choice(others)}) if others else step)


def dropped(problem: Problem, at: int, rng: random.Random) -> Problem:
    """Leaves out step `at`: what follows goes on with one of its operands, or it was the last one."""
    step = problem.steps[at]
    operands = [side for side in (step.left, step.right) if isinstance(side, str)]
    stand_in = rng.choice(operands)

    def skip(later: Step) -> Step:
        sides = (stand_in if side == step.name else side for side in (later.left, later.right))
        return dataclasses.replace(later, **dict(zip(("left", "right"), sides, strict=True)))

    return dataclasses.replace(problem, steps=problem.steps[:at] + tuple(skip(s) for s in problem.steps[at + 1 :]))


SLIPS = {slip.__name__: slip for slip in (arithmetic, operation, quantity, dropped)}
_ATTEMPTS = 200


def make_slips(problem: Problem, count: int, rng: random.Random) -> list[tuple[str, Problem]] | None:
    """Makes `count` slips of different kinds with different wrong answers; None where that is not to be had.

    Returns:
      (kind, problem with the slip in its steps) each.
    """
    lines = solve(problem)
    assert lines is not None
    # A wrong answer is neither the right one nor a number that stands in the question.
    taken = {lines[-1].value, *problem.givens.values()}
    found = []
    for kind in rng.sample(sorted(SLIPS), count):
        for _ in range(_ATTEMPTS):
            wrong = SLIPS[kind](problem, rng.randrange(len(problem.steps)), rng)
            outcome = solve(wrong) if wrong.steps else None
            if outcome and outcome[-1].value not in taken and all(line.left != line.right for line in outcome):
                taken.add(outcome[-1].value)
                found.append((kind, wrong))
                break
        else:
            return None
    return found


def _with_step(problem: Problem, at: int, step: Step) -> Problem:
    return dataclasses.replace(problem, steps=(*problem.steps[:at], step, *problem.steps[at + 1 :]))
