"""Draws questions of the built-in generator that a small student can learn, and writes what its teacher says about them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

from smallr.core.errors import UserError
from smallr.data.builtin import teacher_rows
from smallr.data.builtin.problems import Problem, solve
from smallr.data.builtin.rationales import Rationales, write_rationales
from smallr.data.builtin.templates import TEMPLATES, draw_problem

_ATTEMPTS = 100_000  # draws in a row without a new question


@dataclasses.dataclass(frozen=True)
class Questions:
    """Holds a part of the generator's questions.

    Attributes:
      templates: names of the templates that are drawn from; empty: all.
      largest: the largest number that may come up in a question or its solution.
    """

    templates: tuple[str, ...] = ()
    largest: int = 9999

    def draw(self, seed: str, count: int, forbidden: Sequence[Rationales] = ()) -> list[Rationales]:
        """Draws `count` questions, no two with the same numbers, and none with the numbers of a forbidden one.

        Raises:
          UserError: an unknown template, or too few different questions.
        """
        known = {template.__name__.removeprefix("_"): template for template in TEMPLATES}
        if unknown := set(self.templates) - set(known):
            raise UserError(f"templates: {', '.join(sorted(unknown))} must be of: {', '.join(known)}")
        templates = [known[name] for name in self.templates] or list(TEMPLATES)
        rng, found, misses = random.Random(f"questions {seed}"), {}, 0
        taken = {_numbers(question.problem) for question in forbidden}
        while len(found) < count:
            problem = draw_problem(rng, templates)
            key = _numbers(problem)
            fits = key not in taken and key not in found and _largest(problem) <= self.largest
            written = write_rationales(problem, rng) if fits else None
            if written:
                found[key] = written
            misses = 0 if written else misses + 1
            if misses > _ATTEMPTS:
                raise UserError(f"only {len(found)} different questions of {count} could be drawn; ask for fewer")
        return list(found.values())

    def equations(self, seed: str, count: int) -> list[dict[str, Any]]:
        """Returns rows of SFT with single equations of the same sizes, 12 a row: what a student knows before it sees questions."""
        rng, rows = random.Random(f"equations {seed}"), []
        while len(rows) < count:
            lines = [_equation(rng, self.largest) for _ in range(12)]
            rows.append({"prompt": "Calculate.", "completion": "\n".join(lines)})
        return rows


def taught(questions: Sequence[Rationales], prefix: str) -> list[dict[str, Any]]:
    """Returns the teacher's rows: two in ten rationales fit, seven do not, one is wrong."""
    return list(teacher_rows(questions, prefix))


def _numbers(problem: Problem) -> tuple[Any, ...]:
    return (problem.template, *sorted(problem.givens.values()))


def _largest(problem: Problem) -> int:
    lines = solve(problem)
    assert lines is not None  # draw_problem sees to that
    return max(*problem.givens.values(), *(line.value for line in lines))


def _equation(rng: random.Random, largest: int) -> str:
    while True:
        op = rng.choice("+-*/")
        left, right = rng.randint(2, largest), rng.randint(2, 12 if op in "*/" else largest)
        if op == "*":
            left = rng.randint(2, max(2, largest // right))
        if op == "/":
            left = right * rng.randint(2, max(2, largest // right))
        value = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}[op]
        if 2 <= value <= largest and left <= largest:
            if op in "+*" and rng.random() < 0.5:
                left, right = right, left
            return f"{left} {op} {right} = {value}"
