"""Defines what a discriminator is given and what it says, and the scores that are made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

from smallr.core.errors import UserError
from smallr.methods.planner.task import Outcome, Problem

NO_VERDICT, NOT_EXECUTABLE = -0.5, -1.0
# mode -> (what does not execute is not sent, the outcome is in the prompt)
MODES = {"naive": (False, False), "check": (True, False), "exec": (False, True), "pro": (True, True)}
RULES = ("soft", "hard")


@dataclasses.dataclass(frozen=True)
class Case:
    """The candidates of one problem, with their outcomes."""

    problem: Problem
    plans: tuple[str, ...]
    outcomes: tuple[Outcome, ...]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What a discriminator says about one plan.

    Attributes:
      correct: its verdict; None if it gave none.
      probability: that the plan is correct; None if there is no verdict or the model does not tell.
      text: its rationale, where it writes one.
      prompt_tokens, tokens: read for it, and written.
      error: why it was not asked, in words.
    """

    correct: bool | None = None
    probability: float | None = None
    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    error: str = ""


class Discriminator(Protocol):
    """Judges plans."""

    @property
    def digest(self) -> str:
        """What its judgements depend on, besides the cases."""
        ...

    def judge(self, cases: Sequence[Case]) -> Iterator[tuple[int, list[Judgement]]]:
        """Yields (index of the case, a judgement of each of its plans), in any order."""
        ...


def score(judgement: Judgement, rule: str = "soft") -> float:
    """Returns the score of a judgement.

    Soft is the probability that the plan is correct, hard is 1 or 0. Without a verdict both are -0.5.

    Raises:
      UserError: soft, where the model does not tell probabilities.
    """
    if judgement.correct is None:
        return NO_VERDICT
    if rule == "hard":
        return float(judgement.correct)
    if judgement.probability is None:
        raise UserError(
            "the discriminator's server gives no log-probs, which soft scores need: choose config.discriminator.rules=hard"
        )
    return judgement.probability


def scores(judgements: Sequence[Judgement], outcomes: Sequence[Outcome], mode: str, rule: str = "soft") -> list[float]:
    """Returns the scores of the plans of a problem; in the modes that check, what did not execute has -1."""
    checks, _ = MODES[mode]
    return [
        NOT_EXECUTABLE if checks and outcome.error else score(judgement, rule)
        for judgement, outcome in zip(judgements, outcomes, strict=True)
    ]
