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
      verdicts: all that it wrote, as (tokens written until then, verdict, probability); empty without log-probs.
    """

    correct: bool | None = None
    probability: float | None = None
    text: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    error: str = ""
    verdicts: tuple[tuple[int, bool, float], ...] = ()


class Discriminator(Protocol):
    """Judges plans."""

    @property
    def digest(self) -> str:
        """What its judgements depend on, besides the cases."""
        ...

    def judge(self, cases: Sequence[Case]) -> Iterator[tuple[int, list[Judgement]]]:
        """Yields (index of the case, a judgement of each of its plans), in any order."""
        ...


def within(judgement: Judgement, budget: int) -> Judgement:
    """Returns what a discriminator that writes greedily would have said if it had had fewer tokens.

    A greedy answer under a smaller budget is the beginning of the longer one, so its last verdict is the last of those that
    were complete by then. The text is left as it is.

    Raises:
      UserError: it is not known when the verdicts were written.
    """
    if judgement.tokens <= budget:
        return judgement
    if judgement.correct is not None and not judgement.verdicts:
        raise UserError(
            "the discriminator's server gives no log-probs, which config.discriminator.budgets needs: leave it empty"
        )
    known = [(correct, probability) for tokens, correct, probability in judgement.verdicts if tokens <= budget]
    correct, probability = known[-1] if known else (None, None)
    return dataclasses.replace(judgement, correct=correct, probability=probability, tokens=budget)


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
