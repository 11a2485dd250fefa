"""Reads a rationale and judges it against its problem."""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction

from smallr.data.builtin.problems import Problem, solve

_CHAIN = re.compile(r"[\d(][\d +*/()%=of-]*= *\d+")
_STEP = re.compile(r"Step \d+:")
_BOX = re.compile(r"\\boxed\{([^{}]*)\}")
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def style(problem: Problem, text: str) -> str:
    """Returns the one of `rationales.STYLES` that a text is written in.

    A text that names an unknown is involved; one that leaves out the sentences of more than half of the steps is terse.
    """
    asked = re.escape(problem.asked)
    if re.search(rf"(Let|Write) \w (be|for) {asked}|We denote {asked} by", text):
        return "involved"
    said = sum(all(piece.strip() in text for piece in step.says.split("{}")) for step in problem.steps)
    return "fitted" if 2 * said >= len(problem.steps) else "terse"


def verbosity(problem: Problem, text: str) -> int:
    """Returns from 0 to 9 how many words a rationale has for a step of the solution: 3 for nine to eleven, and so on."""
    return min(len(text.split()) // (3 * len(problem.steps)), 9)


def cognitive_difficulty(problem: Problem, text: str) -> int:
    """Returns from 0 to 9 how hard a rationale is to follow, whatever its length.

    Every step of the solution counts one, and so do a percentage and equations beyond one a step; an unknown counts two.
    """
    extra = len(equations(text)) > len(problem.steps)
    percentage = any(step.op == "%" for step in problem.steps)
    return min(len(problem.steps) + percentage + extra + 2 * (style(problem, text) == "involved"), 9)


def mistake(problem: Problem, text: str) -> str:
    """Returns the first thing that is wrong in a rationale, as a sentence; empty if it is right.

    Right means: every equation holds, each comes to a number of the solution or of the question, and the box at the end
    holds the answer.
    """
    lines = solve(problem)
    assert lines is not None
    known = {*problem.givens.values(), *(line.value for line in lines), *(line.left for line in lines)}
    for chain, values in equations(text):
        if None in values or len(set(values)) != 1:
            return f"{chain} does not hold."
        if values[-1] not in known:
            return f"{chain} is no step of the solution."
    box = _BOX.findall(text)
    if not box:
        return "There is no \\boxed answer."
    return "" if box[-1].strip() == str(lines[-1].value) else f"The answer is not {box[-1]}."


def equations(text: str) -> list[tuple[str, list[Fraction | None]]]:
    """Finds the equations of a rationale, and the value of each of their sides; None for a side that cannot be calculated."""
    chains = _CHAIN.findall(_STEP.sub("", text))
    return [(chain.strip(), [_value(side) for side in chain.split("=")]) for chain in chains]


def _value(expression: str) -> Fraction | None:
    """Returns the exact value of numbers, `+ - * /`, brackets and `p% of n`; None for anything else."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return Fraction(node.value)
        raise ValueError(ast.dump(node))

    try:
        return value(ast.parse(expression.replace("% of", "/ 100 *").strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
