"""Defines arithmetic word problems as lists of steps, and solves them.

A problem is numbers and steps; its rationales are written from the steps, and a slip is made on them, never on text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction

# Every number of a problem and of its rationales, right or wrong: plural, and short to write.
SMALLEST, LARGEST = 2, 9999


@dataclasses.dataclass(frozen=True)
class Step:
    """Describes a step `name = left op right`.

    Attributes:
      name: of the result.
      left, right: names of givens or of earlier results, or a number that is no quantity (a half: 2).
      op: + - * / or % ("left % of right").
      says: the sentence that states it, with {} for the equation.
      error: added to the result; not 0 only in a slip of arithmetic.
    """

    name: str
    left: str | int
    op: str
    right: str | int
    says: str
    error: int = 0


@dataclasses.dataclass(frozen=True)
class Problem:
    """Represents a question and the steps that answer it.

    Attributes:
      template: name of the template that it was drawn from.
      question: text.
      asked: what is asked for, as a noun phrase.
      givens: the numbers of the question.
      steps: in order; the last one's result is the answer.
    """

    template: str
    question: str
    asked: str
    givens: Mapping[str, int]
    steps: tuple[Step, ...]


@dataclasses.dataclass(frozen=True)
class Line:
    """Represents a step with its numbers."""

    step: Step
    left: int
    right: int
    value: int

    @property
    def expression(self) -> str:
        """Returns the left side of the equation."""
        return f"{self.left}% of {self.right}" if self.step.op == "%" else f"{self.left} {self.step.op} {self.right}"

    @property
    def equation(self) -> str:
        """Returns the step as a reader sees it."""
        return f"{self.expression} = {self.value}"


def solve(problem: Problem) -> tuple[Line, ...] | None:
    """Returns the numbers of every step; None where one is not whole or not between `SMALLEST` and `LARGEST`."""
    values = dict(problem.givens)
    lines = []
    for step in problem.steps:
        left, right = (values[side] if isinstance(side, str) else side for side in (step.left, step.right))
        result = calculate(left, step.op, right) + step.error
        if result.denominator != 1 or not SMALLEST <= result <= LARGEST:
            return None
        values[step.name] = int(result)
        lines.append(Line(step, left, right, int(result)))
    return tuple(lines)


def calculate(left: int, op: str, right: int) -> Fraction:
    """Returns the exact value of `left op right`."""
    match op:
        case "+":
            return Fraction(left + right)
        case "-":
            return Fraction(left - right)
        case "*":
            return Fraction(left * right)
        case "/":
            return Fraction(left, right)
        case "%":
            return Fraction(left * right, 100)
    raise ValueError(f"unknown operation {op!r}")
