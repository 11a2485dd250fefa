"""Writes a problem and its sub-questions as the text that a student is trained on, and reads what a student writes.

    question NEWLINE <QUE> first sub-question </QUE> <QUE> second … </QUE>

This is the published sequence: the markers are plain text, each with a space before it, so that a byte-level BPE never
merges tokens over the end of a sub-question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from smallr.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Markers:
    """Writes sub-questions between two markers.

    Raises:
      UserError: a marker is empty, has white space around it, or is a part of the other one.
    """

    open: str = "<QUE>"
    close: str = "</QUE>"

    def __post_init__(self) -> None:
        for name, marker, other in (("open", self.open, self.close), ("close", self.close, self.open)):
            if not marker or marker != marker.strip() or marker in other:
                raise UserError(
                    f"config.markers.{name} = {marker!r} must be a text without white space around it that is no part of the "
                    "other marker"
                )

    def prompt(self, question: str) -> str:
        """Returns what the student is given."""
        return f"{question}\n"

    def segments(self, sub_questions: Sequence[str]) -> list[str]:
        """Returns what the student writes, a text for each sub-question."""
        return [f" {self.open} {sub_question} {self.close}" for sub_question in sub_questions]

    def completion(self, sub_questions: Sequence[str]) -> str:
        """Returns what the student writes, as one text."""
        return "".join(self.segments(sub_questions))

    def read(self, text: str) -> list[str]:
        """Returns the sub-questions of a completion.

        What stands before the first marker is none; one whose end is missing, because the completion was cut off, is none
        either, nor is an empty one.
        """
        found = (piece.partition(self.close) for piece in text.split(self.open)[1:])
        return [" ".join(inside.split()) for inside, end, _ in found if end and inside.strip()]

    def found_in(self, text: str) -> str:
        """Returns a marker that a text holds, else nothing."""
        return next((marker for marker in (self.open, self.close) if marker in text), "")


PUBLISHED = Markers()
