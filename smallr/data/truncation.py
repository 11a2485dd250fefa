"""Shortens prompts that are too long from the left: the policy `truncate_prompt_left`.

The row is shortened, not its tokens: an example is the one that a row with so short a prompt would have made. So the
beginning of the text (BOS), the template's headers of all turns that are left, system messages, tools, soft tokens and all
completions stay as they are.

1. Of a chat the oldest turns behind the system messages are left out, whole: a user's message with all that follows it up
   to the next one. As few as will do.
2. Where the last of them does not fit, the user's message in it loses its beginning; so do plain prompts, and the question
   of rationale and choice rows. What is left is the longest end that fits among those that begin with a token of it, and
   neither inside a word nor inside a number: "530 km" is never cut to "30 km".

A row that does not fit even then is dropped, as all long rows are under the policy `drop`. So is one whose log-probs under a
reference are given (`ref_chosen`): they are of the whole prompt.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from smallr.data.batch import Example
from smallr.data.encode import Encoder
from smallr.data.rows import RationaleRow, TextRow

DROP, TRUNCATE_PROMPT_LEFT = "drop", "truncate_prompt_left"
POLICIES = (DROP, TRUNCATE_PROMPT_LEFT)

# Two characters between which no prompt begins: those of a word or a number, in scripts that put spaces between words.
_JOINED = re.compile(r"[^\W_\u2e80-\uffff\U00020000-\U0003ffff]{2}|\d[.,]|[.,]\d")

Row = TextRow | RationaleRow


class PromptCutter:
    """Finds the example of a row with the longest end of its prompt that fits.

    Args:
      encoder: of the tokenizer.
      longest: characters that no text that fits exceeds.
      excess: tokens over the limit that the prompt of an example must lose; 0 or less where it fits.
    """

    def __init__(self, encoder: Encoder, longest: int, excess: Callable[[Example], int]) -> None:
        self._encoder, self._longest, self._excess = encoder, longest, excess

    def cut(self, row: Row, make: Callable[[Row], Example | None]) -> Example | None:
        """Returns the example of a shorter row; None if none fits.

        Args:
          row: whose example is too long.
          make: makes the example of a row.

        Raises:
          Unrenderable: as raised by `make`.
        """
        completions = [row.answer, row.rationale or ""] if isinstance(row, RationaleRow) else row.completions
        given = isinstance(row, TextRow) and math.isfinite(row.columns.get("ref_chosen", math.nan))
        if given or max(map(_characters, completions), default=0) > self._longest:
            return None
        shorter = _without_oldest_turns(row)
        fitting = bisect.bisect_left(shorter, True, key=lambda each: self._fits(each, make))
        if fitting < len(shorter):
            return make(shorter[fitting])
        return self._cut_text(shorter[-1] if shorter else row, make)

    def _fits(self, row: TextRow, make: Callable[[Row], Example | None]) -> bool:
        return _characters(row.prompt) <= self._longest and self._over(make(row)) <= 0

    def _over(self, example: Example | None) -> int:
        return 1 if example is None else self._excess(example)

    def _cut_text(self, row: Row, make: Callable[[Row], Example | None]) -> Example | None:
        if not (whole := _text(row)):
            return None
        text = whole[-self._longest :]  # no more than this could fit
        starts = self._encoder.token_starts(text)
        apart = [start for start in starts if not (start and _JOINED.fullmatch(text[start - 1 : start + 1]))]
        found = self._cut_at(row, text, starts, apart, make)
        return self._cut_at(row, text, starts, starts, make) if found is None else found

    def _cut_at(
        self, row: Row, text: str, starts: list[int], allowed: list[int], make: Callable[[Row], Example | None]
    ) -> Example | None:
        """Returns the example with the longest end of a text that fits, of those that begin where it is allowed."""
        cuts = [start for start in allowed if text[start:].strip()]
        tokens = [bisect.bisect_left(starts, cut) for cut in cuts]  # that stand before each

        def attempt(number: int) -> tuple[Example | None, int]:
            example = make(_with_text(row, text[cuts[number] :].lstrip()))
            return example, self._over(example)

        if not cuts:
            return None
        number, (example, over) = 0, attempt(0)
        while over > 0 and number < len(cuts) - 1:
            number = min(bisect.bisect_left(tokens, tokens[number] + over), len(cuts) - 1)
            example, over = attempt(number)
        if over > 0:
            return None
        while number > 0:  # tokens at the cut may have joined
            earlier, over = attempt(number - 1)
            if over > 0:
                break
            number, example = number - 1, earlier
        return example


def _without_oldest_turns(row: Row) -> list[TextRow]:
    """Returns the row without its oldest turn, its two oldest turns, …, down to the last turn alone."""
    if isinstance(row, RationaleRow) or isinstance(row.prompt, str):
        return []
    head, turns = _split(row.prompt)
    begins = [i for i, message in enumerate(turns) if message["role"] == "user" and i > 0]
    return [dataclasses.replace(row, prompt=type(row.prompt)([*head, *turns[begin:]])) for begin in begins]


def _split(messages: Sequence) -> tuple[list, list]:
    """Splits messages into the system's at the beginning, and the others."""
    first = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return list(messages[:first]), list(messages[first:])


def _text(row: Row) -> str:
    """Returns what may lose its beginning; empty if there is nothing."""
    if isinstance(row, RationaleRow):
        return row.question
    if isinstance(row.prompt, str):
        return row.prompt
    _, turns = _split(row.prompt)
    return turns[0]["content"] if turns and turns[0]["role"] == "user" else ""


def _with_text(row: Row, text: str) -> Row:
    """Returns the row with another text in the place of `_text`."""
    if isinstance(row, RationaleRow):
        return dataclasses.replace(row, question=text)
    if isinstance(row.prompt, str):
        return dataclasses.replace(row, prompt=text)
    head, turns = _split(row.prompt)
    return dataclasses.replace(row, prompt=type(row.prompt)([*head, {**turns[0], "content": text}, *turns[1:]]))


def _characters(text: str | Sequence) -> int:
    return len(text) if isinstance(text, str) else sum(len(message["content"]) for message in text)
