"""Compares an extracted answer with the gold one: numbers, options, texts."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from smallr.evals import extraction
from smallr.evals.extraction import numerals
from smallr.evals.graders.base import Job, Verdict

# To this a number may differ from a gold one that is not whole, relative to it: 0.333333 for a third, but not 0.33.
TOLERANCE = Decimal("1e-6")
_MARKUP = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


class Match:
    """Grades an output as right if its extracted answer and the gold one are the same after `normalise`."""

    def __init__(
        self,
        extract: extraction.Extract,
        normalise: Callable[[str], Any],
        same: Callable[[Any, Any], bool] = lambda answer, gold: answer == gold,
    ):
        """`normalise` gives None for a text that is no answer; it is applied to both texts."""
        self._extract, self._normalise, self._same = extract, normalise, same

    def grade(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Returns one verdict for each job."""
        return [self._grade(job) for job in jobs]

    def _grade(self, job: Job) -> Verdict:
        found = self._extract(job.output)
        answer = None if found is None else self._normalise(found)
        if answer is None:
            return Verdict(False, None, "no answer")
        return Verdict(self._same(answer, self._normalise(str(job.gold))), str(answer))

    def close(self) -> None:
        """Does nothing, since there is nothing to end."""


class Options:
    """Grades an output as right if it chooses the gold letter, by name or by the text of its option."""

    def __init__(self, letters: str, texts: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None):
        """`texts` gives letter -> text of the options of a row; without it letters alone are read."""
        self._letters, self._texts = letters, texts

    def grade(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Returns one verdict for each job; gold is a letter."""
        return [self._grade(job) for job in jobs]

    def _grade(self, job: Job) -> Verdict:
        texts = self._texts(job.row) if self._texts and job.row else {}
        found = extraction.option(self._letters, texts)(job.output)
        if found is None:
            return Verdict(False, None, "no answer")
        return Verdict(found == str(job.gold).strip().strip("().").upper(), found)

    def close(self) -> None:
        """Does nothing, since there is nothing to end."""


def numbers() -> Match:
    """Compares numbers by their values, however they are written."""
    return Match(extraction.number, to_decimal, close)


def options(letters: str = "ABCDE", texts: Callable[[Mapping[str, Any]], Mapping[str, str]] | None = None) -> Options:
    """Compares the letters of options."""
    return Options(letters, texts)


def words(choices: Sequence[str]) -> Match:
    """Compares one of some words, e.g. yes and no."""
    return Match(extraction.word(choices), lambda text: text.strip().lower())


def texts() -> Match:
    """Compares short texts without regard to case, articles and punctuation, as SQuAD does."""
    return Match(extraction.text, normalise_text)


def to_decimal(text: str) -> Decimal | None:
    """Returns the number that a text is, a sum or a fraction included; None if it is none."""
    return numerals.value(text)


def close(answer: Decimal, gold: Decimal | None) -> bool:
    """Returns whether two numbers are equal: exactly where the gold one is whole, else within the tolerance."""
    if gold is None or answer == gold:
        return gold is not None
    return gold != gold.to_integral_value() and abs(answer - gold) <= TOLERANCE * max(abs(gold), 1)


def normalise_text(text: str) -> str | None:
    """Returns the text in small letters, without punctuation and articles (unless it is one); None if nothing is left."""
    text = _MARKUP.sub(r"\1", text).lower().translate(str.maketrans("", "", string.punctuation + "“”‘’"))
    words = text.split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words) or None
