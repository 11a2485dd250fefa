"""Compares mathematical answers as expressions, by `math-verify` in processes whose time-outs hold.

math-verify's own time-outs are signals, which do not interrupt a computation inside C code and do not work in threads;
here they are switched off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from smallr.evals.extraction import answer_part, boxed, last_boxes
from smallr.evals.graders.base import Job, Verdict
from smallr.evals.isolation.pool import Pool

MAX_CHARACTERS = 20_000  # of the end of an output that are searched for an answer


class Symbolic:
    """Grades an output as right if math-verify finds its answer equal to the gold one, or both are the same LaTeX."""

    def __init__(self, workers: int = 2, seconds: float = 10.0):
        """`seconds` is the limit of one comparison; the verdict then says "timed out"."""
        self._pool = Pool(f"{__name__}:judge", workers, seconds)

    def grade(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Returns one verdict for each job; gold is LaTeX without dollars, or text with a box."""
        answers = self._pool.map([{"output": job.output[-MAX_CHARACTERS:], "gold": str(job.gold)} for job in jobs])
        return [
            Verdict(False, boxed(job.output), answer.problem) if answer.problem else Verdict(**answer.value)
            for job, answer in zip(jobs, answers, strict=True)
        ]

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()


def prepare() -> None:
    """Loads math-verify and its parser; a worker does so before time counts."""
    judge(r"\boxed{1+x}", "x")


def judge(output: str, gold: str) -> dict[str, Any]:
    """Returns the fields of a verdict; runs in a worker."""
    from math_verify import parse, verify  # half a second, in the worker alone

    output = answer_part(output)
    # Boxes side by side are one answer: \boxed{3}, \boxed{5}.
    box = ", ".join(dict.fromkeys(last_boxes(output))) or boxed(output)
    gold_text = boxed(gold) or gold
    if box and plain_latex(box) == plain_latex(gold_text):
        return {"correct": True, "extracted": plain_latex(box)}
    if box and _bases(box) != _bases(gold_text):  # math-verify drops them
        return {"correct": False, "extracted": box[:500], "reason": ""}
    wanted = parse(f"${gold_text}$", parsing_timeout=None)
    # A box is the answer by convention; only without one is the text searched.
    found = parse(f"\\boxed{{{box}}}" if box else output, parsing_timeout=None)
    if not found:
        return {"correct": False, "extracted": box, "reason": "no answer"}
    correct = bool(verify(wanted, found, timeout_seconds=None))
    if correct and wanted and _differ(wanted[0], found[0], gold_text, box or ""):
        correct = False
    return {"correct": correct, "extracted": str(found[0])[:500]}


_BASE = re.compile(r"([0-9A-Za-z]+)\s*_\s*\{?\s*(\d+)\s*\}?")
_DIGITS = 30  # to which numbers that are exact must agree
_RELATIVE = 2e-6  # and those of which the gold one has a decimal point


def _bases(text: str) -> list[tuple[str, str]]:
    """Returns the numerals with a base in a text, e.g. 33 with 5."""
    return [(digits.lower(), base) for digits, base in _BASE.findall(text) if digits.isdigit()]


def _differ(wanted: Any, found: Any, gold: str, answer: str) -> bool:
    """Returns whether two expressions that math-verify takes for equal differ.

    Its comparison rounds to six decimals, which makes all tiny numbers one, and it holds a pair in brackets and a set of the
    same numbers for the same.
    """
    import sympy

    if "%" in gold or "%" in answer or not (isinstance(wanted, sympy.Basic) and isinstance(found, sympy.Basic)):
        return False
    if isinstance(wanted, sympy.FiniteSet) != isinstance(found, sympy.FiniteSet):
        in_order = [plain_latex(text).strip("()[]\\{}") for text in (gold, answer)]
        return isinstance(wanted, sympy.Interval | sympy.Tuple) or (
            isinstance(found, sympy.Interval | sympy.Tuple) and in_order[0] != in_order[1]
        )
    if isinstance(wanted, sympy.FiniteSet):
        return any(all(_differ(one, other, "", "") for other in found.args) for one in wanted.args)
    if any(isinstance(wanted, kind) and isinstance(found, kind) for kind in (sympy.Tuple, sympy.Interval)):
        return any(_differ(one, other, "", "") for one, other in zip(wanted.args, found.args, strict=False))
    if (
        not (isinstance(wanted, sympy.Expr) and isinstance(found, sympy.Expr))
        or wanted.free_symbols | found.free_symbols
    ):
        return False
    rounded = wanted.has(sympy.Float)
    if not rounded:  # what is written is taken for exact: 0.5 is a half, and 0.333333 is no third
        found = found.replace(lambda part: part.is_Float, lambda part: sympy.Rational(str(part)))
    first, second = (sympy.N(expression, _DIGITS + 10) for expression in (wanted, found))
    if not (first.is_comparable and second.is_comparable):
        return False
    limit = _RELATIVE if rounded else sympy.Float(10) ** -_DIGITS
    return bool(abs(first - second) > limit * max(abs(first), abs(second)))


_SPACES = re.compile(r"\\[,;:! ]|\\q?quad|\s|~")
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def plain_latex(text: str) -> str:
    r"""Returns LaTeX without what does not change the meaning: spaces, `\left`, `\text{}`, `\dfrac`, degrees, dollars."""
    text = _WORDS.sub(r"\1", text)
    text = _SPACES.sub("", text)
    for old, new in ((r"\left", ""), (r"\right", ""), (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), ("$", "")):
        text = text.replace(old, new)
    return re.sub(r"\^\{?\\circ\}?", "", text).rstrip(".").lower()
