"""Finds the last character of each segment of a completion in its rendered text; see `segments`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from smallr.data.errors import DataError
from smallr.data.messages import Text
from smallr.data.rows import TextRow
from smallr.data.templates import LAST, Marked, Unrenderable


def with_points(texts: Sequence[Marked], row: TextRow, where: str) -> tuple[Marked, ...]:
    """Returns the rendered completions of a row with the numbers of their segments at characters.

    Raises:
      DataError: what is scored is not the segments, because they repeat the prompt.
      Unrenderable: the chat template rewrites the completion.
    """
    if not row.numbers or not row.numbers[0].segment_columns:
        return tuple(texts)
    marked = []
    for text, completion, numbers in zip(texts, row.completions, row.numbers, strict=True):
        written = _written(completion)
        if len(written) != numbers.segment_ends[-1]:
            raise DataError(f"{where}, column 'completions': the segments begin with the prompt; leave it out of them")
        lasts = _last_characters(text, written, numbers.segment_ends)
        points = {
            name: tuple(zip((*lasts, LAST), map(float, values), strict=True))
            for name, values in numbers.segment_columns.items()
        }
        marked.append(dataclasses.replace(text, points=points))
    return tuple(marked)


def _written(completion: Text) -> str:
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def _last_characters(text: Marked, written: str, ends: Sequence[int]) -> list[int]:
    """Returns the last character of each segment in the rendered text; a template may strip white space around it."""
    body, lead = written.strip(), len(written) - len(written.lstrip())
    begin = text.text.find(body, text.spans[0].start)
    if begin < 0:
        raise Unrenderable("the chat template rewrites the completion, so that its segments cannot be found")
    return [begin + min(max(end - lead, 1), len(body)) - 1 for end in ends]
