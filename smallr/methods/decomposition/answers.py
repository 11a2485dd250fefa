"""Reads final answers and compares them with gold ones: by math-verify, or as the released code does."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from smallr.evals.extraction import numerals
from smallr.evals.graders.base import Job
from smallr.evals.graders.matching import to_decimal
from smallr.evals.graders.symbolic import Symbolic

PARSERS = ("math_verify", "published")
MARK = "Final answer:"
_LINE = re.compile(rf"{MARK}([^\n]*)", re.IGNORECASE)


def final_line(reply: str | None) -> str | None:
    """Returns what stands behind the first "Final answer:", up to the end of its line; None without one.

    What follows may be a problem of the model's own.
    """
    match = _LINE.search(reply or "")
    return match[1].strip(" \t*_`") if match else None


def final_number(reply: str | None) -> str | None:
    """Returns the number of the final answer, else None."""
    line = final_line(reply)
    return None if line is None else numerals.find(line)


def gold_number(answer: object) -> float | None:
    """Returns the number of a gold answer, which may be GSM8K's whole solution with "####"; None if it is none."""
    text = str(answer).rpartition("####")[2].strip()
    number = to_decimal(text) if text else None
    return None if number is None else float(number)


def published_number(text: str) -> float | None:
    """Parses as the released code does: the first number, without sign and thousands unless it has a decimal point."""
    match = re.search(r"[+-]?\d*\.\d+|\d+", text)
    return float(match[0]) if match else None


def published_answer(reply: str | None) -> float | None:
    """Parses a reply as the released code does; without "final answer:" it reads on from the twelfth character."""
    if reply is None:
        return None
    text = reply.lower()
    return published_number(text[text.find(MARK.lower()) + len(MARK) :])


class AnswerCheck:
    """Compares the final answers of replies with gold numbers.

    Args:
      parser: one of PARSERS. published: both are read by the released code's parser of numbers, which loses signs and
        thousands; for published figures alone.
    """

    def __init__(self, parser: str = "math_verify"):
        self._grader = Symbolic() if parser == "math_verify" else None

    def check(self, replies: Sequence[str | None], golds: Sequence[str]) -> list[bool | None]:
        """Returns for each reply whether it is right; None if it has no final answer.

        Args:
          replies: of a solver.
          golds: texts with a number each, perhaps behind "####".
        """
        if self._grader is None:
            found = [
                (published_answer(reply), published_number(gold)) for reply, gold in zip(replies, golds, strict=True)
            ]
            return [None if answer is None else answer == gold for answer, gold in found]
        lines = [final_line(reply) for reply in replies]
        jobs = [Job(line, _bare(gold)) for line, gold in zip(lines, golds, strict=True) if line]
        verdicts = iter(self._grader.grade(jobs))
        return [next(verdicts).correct if line else None for line in lines]

    def close(self) -> None:
        """Ends the processes."""
        if self._grader is not None:
            self._grader.close()


def _bare(gold: str) -> str:
    return gold.rpartition("####")[2].strip().replace(",", "")


@contextlib.contextmanager
def answer_check(parser: str = "math_verify") -> Iterator[AnswerCheck]:
    """Opens a check and ends its processes."""
    check = AnswerCheck(parser)
    with contextlib.closing(check):
        yield check
