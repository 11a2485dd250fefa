"""Mathematical answers compared as expressions, by `math-verify` in processes whose time-outs hold.

math-verify's own time-outs are signals, which do not interrupt a computation inside C code and do not work in threads;
here they are switched off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from smallr.evals.extraction import after_reasoning, boxed
from smallr.evals.graders.base import Job, Verdict
from smallr.evals.isolation.pool import Pool

MAX_CHARACTERS = 20_000  # of the end of an output that are searched for an answer


class Symbolic:
    """Right if math-verify finds the output's answer equal to the gold one, or the two are the same LaTeX."""

    def __init__(self, workers: int = 2, seconds: float = 10.0):
        """`seconds` is the limit of one comparison; the verdict then says "timed out"."""
        self._pool = Pool(f"{__name__}:judge", workers, seconds)

    def grade(self, jobs: Sequence[Job]) -> list[Verdict]:
        """One verdict for each job; gold is LaTeX without dollars, or text with a box."""
        answers = self._pool.map([{"output": job.output[-MAX_CHARACTERS:], "gold": str(job.gold)} for job in jobs])
        return [
            Verdict(False, boxed(job.output), answer.problem) if answer.problem else Verdict(**answer.value)
            for job, answer in zip(jobs, answers, strict=True)
        ]

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()


def judge(output: str, gold: str) -> dict[str, Any]:
    """The fields of a verdict; runs in a worker."""
    from math_verify import parse, verify  # half a second, in the worker alone

    output = after_reasoning(output)
    box = boxed(output)
    gold_text = boxed(gold) or gold
    if box is not None and plain_latex(box) == plain_latex(gold_text):
        return {"correct": True, "extracted": plain_latex(box)}
    wanted = parse(f"${gold_text}$", parsing_timeout=None)
    # A box is the answer by convention; only without one is the text searched.
    found = parse(f"\\boxed{{{box}}}" if box is not None else output, parsing_timeout=None)
    if not found:
        return {"correct": False, "extracted": box, "reason": "no answer"}
    return {"correct": bool(verify(wanted, found, timeout_seconds=None)), "extracted": str(found[0])[:500]}


_SPACES = re.compile(r"\\[,;:! ]|\\q?quad|\s|~")
_WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def plain_latex(text: str) -> str:
    r"""LaTeX without what does not change the meaning: spaces, `\left`, `\text{}`, `\dfrac`, degrees, dollars."""
    text = _WORDS.sub(r"\1", text)
    text = _SPACES.sub("", text)
    for old, new in ((r"\left", ""), (r"\right", ""), (r"\dfrac", r"\frac"), (r"\tfrac", r"\frac"), ("$", "")):
        text = text.replace(old, new)
    return re.sub(r"\^\{?\\circ\}?", "", text).rstrip(".").lower()
