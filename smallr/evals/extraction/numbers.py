"""Extracts the number that a text comes to."""

from __future__ import annotations

import re

from smallr.evals.extraction import numerals
from smallr.evals.extraction.places import MARK, affirmed, answer_part, boxed, statements

_NUMBER = r"(?:\d|\\frac)"
_UNKNOWN = re.compile(
    r"\W*(?:unknown|undefined|unclear|undetermined|impossible|none|(?:not|n['’]t) (?:known|given|possible|clear|defined)|"
    r"(?:cannot|can't|could not|couldn't) be)\b",
    re.IGNORECASE,
)
# "The answer cannot be determined from 7": said instead of "the answer is …".
_DECLINED = re.compile(
    r"\banswers?\s++(?:(?:cannot|can\s*+not|can['’]t|could\s*+n[o'’]t|couldn['’]t|may\s++not)\s++be|"
    r"does(?:\s++not|n['’]t)\s++exist|depends\b)|\bno\s++(?:unique\s++|single\s++|definite\s++)?answer\b|"
    r"\b(?:cannot|can['’]t|impossible\s++to|not\s++enough\s++information\s++to)\s++(?:determine|answer|compute|find|say)\b",
    re.IGNORECASE,
)


def number(text: str) -> str | None:
    """Returns a number: behind `####`, in the last box, in what is stated to be the answer, else the last of the text."""
    text = answer_part(text)
    box = boxed(text)
    mark = next((mark[1] for mark in MARK.finditer(text) if _is_answer_mark(mark[1])), None)
    # A line of a number alone is GSM8K's form; with words it may be a heading, and a box is surer.
    if mark is not None and (not box or re.fullmatch(r"[\s$*]*[-−]?[\d.,]+[\s%.*]*", mark)):
        return numerals.find(mark)
    if box:
        return numerals.find(box)
    for statement in reversed(statements(text)):
        if numerals.mentions_number(statement):
            return numerals.find(affirmed(statement, _NUMBER))
        if _UNKNOWN.match(statement):
            return None
    return None if _DECLINED.search(text) else numerals.last(text)


def _is_answer_mark(line: str) -> bool:
    """Returns whether `####` gives a number; it may also begin a heading ("#### Step 1", "#### 2. Total")."""
    return bool(re.match(r"[\s*$\\({+−-]*\d|\s*\\(?:[dt]?frac|sqrt)", line)) and not re.match(
        r"\s*\d+\s*[.):]\s*[^\d\s]", line
    )
