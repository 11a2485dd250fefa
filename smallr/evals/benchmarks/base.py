"""Defines what a benchmark is: where its rows are, how a row becomes a question, and who judges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from smallr.evals.graders.base import Grader

Row = Mapping[str, Any]


@dataclass(frozen=True)
class GraderOptions:
    """Holds what a user may set of any grader.

    Attributes:
      workers: processes at once.
      seconds: limit of one judgement; None: the benchmark's own.
      unsafe_code_execution: run code with limits alone where it cannot be isolated.
    """

    workers: int = 2
    seconds: float | None = None
    unsafe_code_execution: bool = False


@dataclass(frozen=True)
class Source:
    """Says where rows are by default.

    Attributes:
      hub: id of a data set on the hub, with its config; empty where the user must bring a copy.
      split: name of the split there.
      advice: where a copy can be had, for the error.
    """

    hub: str = ""
    split: str = "test"
    advice: str = ""


@dataclass(frozen=True)
class Question:
    """Represents a row to be answered in text.

    Attributes:
      prompt: what the model is asked.
      gold: as the grader wants it.
      solution: an answer as a model should give it, for examples; empty where the row has none.
    """

    prompt: str
    gold: Any
    solution: str = ""


@dataclass(frozen=True)
class Choice:
    """Represents a row to be answered by likelihood.

    Attributes:
      contexts: what stands before each continuation; the same for all, or one each (WinoGrande).
      continuations: what is scored.
      texts: the options, whose lengths normalise.
      gold: index of the right one.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    texts: tuple[str, ...]
    gold: int

    def __post_init__(self) -> None:
        if not 0 <= self.gold < len(self.continuations):
            raise ValueError(f"the right option is number {self.gold} of {len(self.continuations)}")
        if not all(self.continuations):
            raise ValueError("an option is empty")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Represents a benchmark whose answers are texts.

    Attributes:
      read: a row -> its question; KeyError, TypeError, ValueError, IndexError mean a malformed row.
      grader: makes the judge.
      max_tokens: of a completion, by default.
      runs_code: whether the grader executes what the model writes.
    """

    name: str
    source: Source
    read: Callable[[Row], Question]
    grader: Callable[[GraderOptions], Grader]
    max_tokens: int = 1024
    runs_code: bool = False
    metric: str = "pass@1"


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Represents a benchmark whose answer is the option of the greatest log-likelihood.

    Attributes:
      read: a row -> its options, as for Generation.
      metric: the one reported first: "acc" (sum of log-probs) or "acc_norm" (divided by the option's characters).
    """

    name: str
    source: Source
    read: Callable[[Row], Choice]
    metric: str = "acc"


Benchmark = Generation | Likelihood
