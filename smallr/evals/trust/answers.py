"""Finds where the answer that a grader has read stands in the text, so that its tokens are known."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal

from smallr.core.errors import UserError
from smallr.evals import extraction
from smallr.evals.benchmarks import find
from smallr.evals.benchmarks.base import Generation, GraderOptions
from smallr.evals.extraction import after_reasoning, answer_part, numerals, places
from smallr.evals.graders import matching
from smallr.evals.graders.base import Grader, Job
from smallr.evals.trust.parts import Parts
from smallr.language.confidence import Answer, Extract, Span

WHOLE, SHORT_TEXT = "all", "text"  # ways to read an answer besides the benchmarks'
_CORES = (
    r"\\[dt]?frac\s*\{[^{}]{1,40}\}\s*\{[^{}]{1,40}\}",
    r"\d+\s?/\s?\d+",
    r"\d{1,3}(?:(?:,|\{,\}|\\,|\s)\d{3})+(?:\.\d+)?",  # thousands in groups
    r"\d*\.?\d+",
)
# Each with its sign and without: behind another number a hyphen is a minus between the two.
_NUMERALS = [
    re.compile(rf"(?<![\w.])(?<!\d,){sign}(?<![\w.])(?<!\d,){core}(?!\d)")
    for core in _CORES
    for sign in ("", r"[-−]\s?")
]


def locate(text: str, value: str) -> Span | None:
    """Returns the span of an answer in the text it was read from; None if it cannot be told.

    Places are tried in the order in which the extractors read them: behind `####`, the last box, what is stated to be
    the answer, the end of the text.

    Args:
      text: of the sample.
      value: the answer as the grader gives it, normalised.
    """
    part = answer_part(text)
    offset = text.rfind(after_reasoning(text)) if "</think>" in text else 0
    offset = max(offset, len(text) - places.MAX_CHARACTERS)
    for start, end, last in _places(part):
        found = _inside(part[start:end], value, last)
        if found is not None:
            return offset + start + found[0], offset + start + found[1]
    return None


def _places(part: str) -> Iterator[tuple[int, int, bool]]:
    """Yields begin and end of each place, and whether the last mention in it counts, not the first."""
    if mark := places.MARK.search(part):
        yield mark.start(1), mark.end(1), False
    if box := places.last_box(part):
        yield *box, False
    for match in reversed(list(places.STATED.finditer(part))[-places.MAX_STATEMENTS :]):
        yield match.end(), match.end() + places.MAX_SENTENCE, False
    yield 0, len(part), True


def _inside(segment: str, value: str, last: bool) -> Span | None:
    number = numerals.value(value)
    if number is not None:
        found = (match for pattern in _NUMERALS for match in pattern.finditer(segment))
        spans = sorted(match.span() for match in found if _value(match[0]) == number)
    else:
        spans = [match.span() for match in _literal(value).finditer(segment)]
    return (spans[-1] if last else spans[0]) if spans else None


def _value(text: str) -> Decimal | None:
    return numerals.value(text.replace("−", "-"))


def _literal(value: str) -> re.Pattern[str]:
    words = r"\s+".join(map(re.escape, value.split())) or re.escape(value)
    flags = 0 if len(value) == 1 else re.IGNORECASE  # "a" is a word, "A" an option
    return re.compile(rf"(?<!\w){words}(?!\w)", flags)


def answer_of(text: str, value: str | None, parts: Parts | None = None) -> Answer | None:
    """Returns the answer with its span; where that cannot be told, all of the text stands for it.

    Args:
      text: of the sample.
      value: the answer as the grader gives it; None if there is none.
      parts: of the text, if the answer stands in one of them alone; None: anywhere.
    """
    if value is None:
        return None
    offset, inner = (parts.start, parts.answer) if parts else (0, text)
    begin, end = locate(inner, value) or (0, len(inner))
    return Answer(value, (offset + begin, offset + end))


def extractor(name: str) -> tuple[Extract, Callable[[], None]]:
    """Returns what finds the answers of texts, and what ends its processes.

    Args:
      name: of a benchmark, whose grader says what an answer is; "text" for what is boxed or stated, else the last line;
        "all" for the whole text.

    Raises:
      UserError: no such benchmark, or one whose answers are no words or numbers.
    """
    if name in (WHOLE, SHORT_TEXT):
        one = _whole if name == WHOLE else _short
        return (lambda texts: list(map(one, texts))), lambda: None
    grader = grader_of(name)
    return reading(grader), grader.close


def reading(grader: Grader, split: Callable[[str], Parts] | None = None) -> Extract:
    """Returns what finds the answers of texts as a grader reads them; with `split` in the answer's part of a text alone."""

    def extract(texts: Sequence[str]) -> list[Answer | None]:
        parts = [split(text) if split else None for text in texts]
        jobs = [Job(part.answer if part else text, "0") for text, part in zip(texts, parts, strict=True)]
        found = zip(texts, grader.grade(jobs), parts, strict=True)
        return [answer_of(text, verdict.extracted, part) for text, verdict, part in found]

    return extract


def _whole(text: str) -> Answer | None:
    return Answer(text.strip(), (0, len(text))) if text.strip() else None


def _short(text: str) -> Answer | None:
    found = extraction.text(text)
    if not found:
        return None
    return Answer(matching.normalise_text(found) or found, locate(text, found) or (0, len(text)))


def grader_of(name: str) -> Grader:
    benchmark = find(name)
    if not isinstance(benchmark, Generation):
        raise UserError(f"answer: {name} is answered by likelihood; a text needs a benchmark that is answered in text")
    if benchmark.runs_code:
        raise UserError(f"answer: that of {name} is a program; use --answer=all")
    return benchmark.grader(GraderOptions())
