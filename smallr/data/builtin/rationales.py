r"""Writes rationales from solved steps: fitted to a small reader, too terse, or too involved.

All end in the answer in `\boxed{}`. Wrong rationales are written in the same three ways as right ones, so that neither
length nor style tells right from wrong.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from smallr.data.builtin.problems import Line, Problem, calculate, solve
from smallr.data.builtin.slips import make_slips

# Verdicts of a critic on a right rationale: lacks steps, fits, has more than the reader can follow.
EASY, MEDIUM, HARD = "easy", "medium", "hard"
STYLES = ("terse", "fitted", "involved")  # in the order of these verdicts
_DECIDING = {"fitted": 2, "terse": 1, "involved": 1}  # how often a wrong rationale is written in each style


@dataclasses.dataclass(frozen=True)
class Incorrect:
    """Represents a rationale with a slip of a kind, and the wrong answer that it leads to."""

    text: str
    slip: str
    answer: int


@dataclasses.dataclass(frozen=True)
class Rationales:
    """Holds what a teacher might write for one question.

    Attributes:
      fitted: right, step by step, with its reasons.
      unfitted: right, but too terse or too involved.
      label: which of the two `unfitted` is, as a critic says it: easy (too terse) or hard (too involved).
      incorrect: with slips of different kinds and different answers.
    """

    problem: Problem
    answer: int
    fitted: str
    unfitted: str
    label: str
    incorrect: tuple[Incorrect, ...]


def write_rationales(problem: Problem, rng: random.Random, wrong: int = 2) -> Rationales | None:
    """Returns all rationales of a problem; None where it does not allow `wrong` slips."""
    lines = solve(problem)
    slips = make_slips(problem, wrong, rng)
    if not lines or not slips:
        return None
    label = rng.choice((EASY, HARD))
    incorrect = []
    for kind, slipped in slips:
        outcome = solve(slipped)
        assert outcome is not None
        (style,) = rng.choices(tuple(_DECIDING), tuple(_DECIDING.values()))
        incorrect.append(Incorrect(write(style, slipped, outcome, rng, right=False), kind, outcome[-1].value))
    return Rationales(
        problem=problem,
        answer=lines[-1].value,
        fitted=write("fitted", problem, lines, rng, right=True),
        unfitted=write("terse" if label == EASY else "involved", problem, lines, rng, right=True),
        label=label,
        incorrect=tuple(incorrect),
    )


def write(style: str, problem: Problem, lines: Sequence[Line], rng: random.Random, right: bool) -> str:
    """Returns one rationale in a style of `STYLES`.

    Args:
      style: how.
      problem: whose steps are told; with a slip in them for a wrong rationale.
      lines: its solution.
      rng: chooses among ways to say it.
      right: whether there is no slip; a right, terse rationale may be shorter than all its equations.
    """
    if style == "fitted":
        return _fitted(problem, lines, rng)
    if style == "involved":
        return _involved(problem, lines, rng)
    return _terse(lines, rng, right)


def _fitted(problem: Problem, lines: Sequence[Line], rng: random.Random) -> str:
    sentences = [line.step.says.format(line.equation) for line in lines]
    if rng.random() < 0.3:
        sentences = [f"Step {i}: {sentence}" for i, sentence in enumerate(sentences, 1)]
    elif rng.random() < 0.5:
        sentences.insert(0, f"We look for {problem.asked}.")
    closing = rng.choice(("The answer is \\boxed{%d}.", "So the answer is \\boxed{%d}.", "Answer: \\boxed{%d}"))
    return rng.choice((" ", "\n")).join([*sentences, closing % lines[-1].value])


def _terse(lines: Sequence[Line], rng: random.Random, right: bool) -> str:
    """Writes bare equations; a right one may be shorter still: one expression, or the last step alone."""
    answer = f"\\boxed{{{lines[-1].value}}}"
    ways = [rng.choice((", ", "; ", "\n")).join(line.equation for line in lines)]
    if right:
        ways += [f"{_nested(lines, lines[-1])} = {lines[-1].value}", lines[-1].equation]
    return f"{rng.choice(ways)}{rng.choice((', so ', '. ', ' -> '))}{answer}"


def _nested(lines: Sequence[Line], line: Line) -> str:
    """Returns the whole calculation in one expression."""
    by_name = {earlier.step.name: earlier for earlier in lines}

    def operand(side: str | int, value: int) -> str:
        inner = by_name.get(side) if isinstance(side, str) else None
        return f"({_nested(lines, inner)})" if inner else str(value)

    left, right = operand(line.step.left, line.left), operand(line.step.right, line.right)
    return f"{left}% of {right}" if line.step.op == "%" else f"{left} {line.step.op} {right}"


def _involved(problem: Problem, lines: Sequence[Line], rng: random.Random) -> str:
    """Returns an unknown nobody needs, and a detour on a step that is right in itself."""
    unknown = rng.choice("xyzn")
    opening = rng.choice(
        (
            f"Let {unknown} be {problem.asked}.",
            f"Write {unknown} for {problem.asked}.",
            f"We denote {problem.asked} by {unknown} and seek an equation.",
        )
    )
    detour = rng.choice([line for line in lines if line.step.error == 0] or [None])
    sentences = [opening]
    for line in lines:
        sentences.append(line.step.says.format(line.equation))
        if line is detour:
            sentences.append(_detour(line, rng))
    closing = rng.choice(
        (
            f"Nothing else contributes: {unknown} = {lines[-1].value}, so",
            f"Therefore {unknown} = {lines[-1].value}, that is,",
        )
    )
    return " ".join(sentences) + f" {closing} \\boxed{{{lines[-1].value}}}."


def _detour(line: Line, rng: random.Random) -> str:
    """Says again, the long way round, what a true equation has said."""
    big, small = max(line.left, line.right), min(line.left, line.right)
    if line.step.op == "*" and big > 10 and big % 10:
        tens, ones = big - big % 10, big % 10
        return f"Indeed {small} * {big} = {small} * {tens} + {small} * {ones} = {small * tens} + {small * ones} = {line.value}."
    if line.step.op == "%":
        hundredth = f"{line.left} / 100 * {line.right}"
        return f"As a fraction over a hundred it is {hundredth} = {line.value}."
    inverse = {"+": "-", "-": "+", "*": "/", "/": "*"}[line.step.op]
    assert calculate(line.value, inverse, line.right) == line.left
    lead = rng.choice(("One can verify this by", "Going back,", "As a check,"))
    return f"{lead} {line.value} {inverse} {line.right} = {line.left}."
