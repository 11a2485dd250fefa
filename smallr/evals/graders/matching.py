"""Graders that compare an extracted answer with the gold one: numbers, options, texts."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from smallr.evals import extraction
from smallr.evals.graders.base import Job, Verdict

# Two numbers are equal within this, relative to the gold one: 0.333333 for a third, but not 0.33.
TOLERANCE = Decimal("1e-6")


class Match:
    """Right if the extracted answer and the gold one are the same after `normalise`."""

    def __init__(
        self,
        extract: extraction.Extract,
        normalise: Callable[[str], Any],
        same: Callable[[Any, Any], bool] = lambda answer, gold: answer == gold,
    ):
        """`normalise` gives None for a text that is no answer; it is applied to both sides."""
        self._extract, self._normalise, self._same = extract, normalise, same

    def grade(self, jobs: Sequence[Job]) -> list[Verdict]:
        """One verdict for each job."""
        return [self._grade(job) for job in jobs]

    def _grade(self, job: Job) -> Verdict:
        found = self._extract(job.output)
        answer = None if found is None else self._normalise(found)
        if answer is None:
            return Verdict(False, None, "no answer")
        return Verdict(self._same(answer, self._normalise(str(job.gold))), str(answer))

    def close(self) -> None:
        """Nothing to end."""


def numbers() -> Match:
    """Compares numbers, whatever their commas, currency signs and trailing zeros."""
    return Match(extraction.number, to_decimal, close)


def options(letters: str = "ABCDE") -> Match:
    """Compares the letters of options."""
    return Match(extraction.option(letters), lambda text: text.strip().upper())


def words(choices: Sequence[str]) -> Match:
    """Compares one of some words, e.g. yes and no."""
    return Match(extraction.word(choices), lambda text: text.strip().lower())


def texts() -> Match:
    """Compares short texts without regard to case, articles and punctuation, as SQuAD does."""
    return Match(extraction.text, normalise_text)


def to_decimal(text: str) -> Decimal | None:
    """The number that a text is; None if it is none or not finite."""
    text = re.sub(r"[\s,$€£%]", "", text).replace("−", "-").rstrip(".")
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    if not value.is_finite():
        return None
    return value.normalize() + 0  # 5.0 and 5 are one vote; so are 0 and -0


def close(answer: Decimal, gold: Decimal | None) -> bool:
    """Whether two numbers are equal within the tolerance."""
    return gold is not None and abs(answer - gold) <= TOLERANCE * max(abs(gold), 1)


def normalise_text(text: str) -> str | None:
    """Lower case, no punctuation at the ends or between, no articles, single spaces; None if nothing is left."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    text = " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
    return text or None
