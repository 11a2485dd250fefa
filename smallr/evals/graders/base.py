"""Defines what a grader is given and what it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Job:
    """Represents an output to be judged.

    Attributes:
      output: the model's text.
      gold: the right answer, in the form that the grader wants.
      row: the data set's row, for graders that need more of it.
    """

    output: str
    gold: Any
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Represents a judgement.

    Attributes:
      correct: whether the output is right; False whenever it could not be judged.
      extracted: the answer found in the output, normalised as far as the grader does; equal texts are equal votes in
        maj@k. None if there is none.
      reason: why it is not right where that is not simply another answer, e.g. "no answer", "timed out".
    """

    correct: bool
    extracted: str | None = None
    reason: str = ""


class Grader(Protocol):
    """Judges outputs."""

    def grade(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Returns one verdict for each job, in order."""
        ...

    def close(self) -> None:
        """Ends the processes it has started."""
        ...
