"""Checks by rule whether the answer that a rationale comes to is the gold answer."""

from __future__ import annotations

import asyncio
import re

from smallr.evals import extraction
from smallr.evals.graders import matching
from smallr.evals.graders.base import Grader, Job, Verdict
from smallr.evals.graders.symbolic import Symbolic
from smallr.methods.crv import formats

KINDS = ("auto", "number", "math", "option", "words", "text", "none")
_YES_NO = ("yes", "no", "true", "false")
_OPTION = re.compile(r"\(?([A-J])\)?\.?")
_SYMBOLS = re.compile(r"[\\^_{}=]|\d")


class RuleCheck:
    """Compares answers with the graders of evaluations.

    Args:
      kind: one of KINDS. auto: by the gold answer, a number, the letter of an option (A to J), yes or no, an expression
        (math-verify), else a short text. none: there is no rule check.
    """

    def __init__(self, kind: str):
        self._kind = kind
        self._graders: dict[str, Grader] = {
            "number": matching.numbers(),
            "option": matching.options("ABCDEFGHIJ"),
            "words": matching.words(_YES_NO),
            "text": matching.texts(),
            "math": Symbolic(),
        }

    @property
    def is_used(self) -> bool:
        """Returns whether there is a rule check at all."""
        return self._kind != "none"

    async def check(self, rationale: str, gold: str) -> Verdict | None:
        """Returns the verdict; None if there is nothing to compare with. `extracted` is then fit to stand in a box."""
        if not gold or self._kind == "none":
            return None
        solution = formats.parts(rationale)[1]
        kind = self.kind_of(gold, solution)
        job = Job(solution, _OPTION.fullmatch(gold)[1] if kind == "option" and _OPTION.fullmatch(gold) else gold)
        if kind == "math":  # it waits for another process
            (verdict,) = await asyncio.to_thread(self._graders[kind].grade, [job])
        else:
            (verdict,) = self._graders[kind].grade([job])
        if kind == "number" and verdict.extracted is not None:
            return Verdict(verdict.correct, extraction.number(solution), verdict.reason)
        return verdict

    def kind_of(self, gold: str, solution: str = "") -> str:
        """Returns the grader for a gold answer."""
        if self._kind != "auto":
            return self._kind
        if matching.to_decimal(gold) is not None:
            box = extraction.boxed(solution)
            return "number" if box is None or matching.to_decimal(box) is not None else "math"
        if _OPTION.fullmatch(gold):
            return "option"
        if gold.lower() in _YES_NO:
            return "words"
        return "math" if _SYMBOLS.search(gold) else "text"

    def close(self) -> None:
        """Ends the processes."""
        for grader in self._graders.values():
            grader.close()
