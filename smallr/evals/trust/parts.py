"""Splits what a model wrote into its rationale and its answer, in either order."""

from __future__ import annotations

import dataclasses
import re

from smallr.core.errors import UserError
from smallr.data.errors import nearest
from smallr.data.orders import ORDERS
from smallr.evals.extraction import numerals
from smallr.evals.extraction.places import MARK, STATED

_BOX = re.compile(r"\$*\\f?boxed\s*\{")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_OPEN_EQUATION = re.compile(r"([\d\s.,+*/×÷()-]*)=[\s$]*\Z")
_LONGEST_EQUATION = 200  # characters
_THOUGHTS = "</think>"


@dataclasses.dataclass(frozen=True)
class Parts:
    """Holds both parts of a text; either may be empty.

    Attributes:
      rationale: without the statement of the answer.
      answer: what is graded.
      start: of the answer in the text, where the same words may stand elsewhere too.
    """

    rationale: str
    answer: str
    start: int = 0


def check_order(order: str) -> None:
    """Refuses an order that is none.

    Raises:
      UserError: names the field.
    """
    if order not in ORDERS:
        raise UserError(
            f"config.agreement.order = {order!r} must be one of: {', '.join(ORDERS)}{nearest(order, ORDERS)}"
        )


def split(text: str, order: str, separator: str = "") -> Parts:
    """Splits a text.

    With a separator its one side is the answer: the first side of the first separator, or the last side of the last one.
    Without a separator an answer that comes first is the first line; one that comes last is the last box or statement of
    an answer, or what follows `</think>`, or else the last sentence.

    Args:
      text: that the model wrote.
      order: one of `data.orders.ORDERS`.
      separator: that the model was trained to write between the two, such as `-->`.
    """
    if order == "answer_first":
        answer, _, rationale = text.lstrip().partition(separator or "\n")
        return Parts(rationale.strip(), answer.strip(), len(text) - len(text.lstrip()))
    if separator:
        rationale, mark, answer = text.rpartition(separator)
        return Parts(rationale.strip(), answer.strip(), _end(text, answer)) if mark else Parts(text.strip(), "")
    if _THOUGHTS in text:
        thoughts, _, answer = text.rpartition(_THOUGHTS)
        return Parts(thoughts.replace("<think>", "").strip(), answer.strip(), _end(text, answer))
    return Parts(close_equation(text[: _statement(text)].strip()), text)


def _end(text: str, last: str) -> int:
    """Returns where the words of the last part of a text begin."""
    return len(text) - len(last.lstrip())


def _statement(text: str) -> int:
    """Returns where the last statement of an answer begins; where there is none, the last sentence."""
    found = [match for pattern in (MARK, STATED, _BOX) for match in pattern.finditer(text)]
    if not found:
        return _sentence_start(text.rstrip(), len(text.rstrip()))
    last = max(found, key=lambda match: match.start()).start()
    start = _sentence_start(text, last)
    # "So the answer is 8" is a statement as a whole; of "5 + 3 = 8, so 8" the equation belongs to the rationale.
    return last if "=" in text[start:last] else start


def _sentence_start(text: str, position: int) -> int:
    return max((match.end() for match in _SENTENCE.finditer(text, 0, position)), default=0)


def close_equation(text: str) -> str:
    """Adds the value to a rationale whose last equation was cut off before it, as in "so 5 + 3 =".

    Where the left side cannot be calculated the rationale comes to nothing without the answer, and none is returned.
    """
    match = _OPEN_EQUATION.search(text, max(0, len(text) - _LONGEST_EQUATION))
    if match is None:
        return text
    left = match[1].replace("×", "*").replace("÷", "/").strip(" .,\n")
    value = numerals.value(left) if re.match(r"[\d(]", left) else None
    return "" if value is None else f"{text} {value}"
