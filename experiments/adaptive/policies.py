"""Computes accuracy and cost of a policy (who answers first, who thinks first) from each question's outcome in both modes.

Outcomes are arrays [seeds, questions]. Nothing is assumed of a mode's cost: tokens are those that were written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Holds what a mode (or a policy) did with each question.

    Attributes:
      correct: 0 or 1, or a probability.
      tokens: written, those of coming to a decision included.
    """

    correct: Float[np.ndarray, "seeds questions"]
    tokens: Float[np.ndarray, "seeds questions"]

    @property
    def accuracy(self) -> float:
        """Returns the mean over seeds and questions."""
        return float(self.correct.mean())

    @property
    def tokens_per_answer(self) -> float:
        """Returns the mean over seeds and questions."""
        return float(self.tokens.mean())


def choose(
    answer: Outcomes, think: Outcomes, thinks: Bool[np.ndarray, "seeds questions"], extra: float | np.ndarray = 0.0
) -> Outcomes:
    """Thinks first where `thinks`; `extra` tokens were written to decide."""
    return Outcomes(
        np.where(thinks, think.correct, answer.correct), np.where(thinks, think.tokens, answer.tokens) + extra
    )


def at_rate(answer: Outcomes, think: Outcomes, rate: float | Float[np.ndarray, "seeds 1"]) -> Outcomes:
    """Thinks about a share of the questions, drawn without a look at them: the expectation over all draws."""
    return Outcomes(
        (1 - rate) * answer.correct + rate * think.correct, (1 - rate) * answer.tokens + rate * think.tokens
    )


def oracle(answer: Outcomes, think: Outcomes) -> Outcomes:
    """Thinks only where answering first is wrong and thinking first is right: no policy is more accurate, or cheaper at it."""
    return choose(answer, think, (think.correct > 0.5) & (answer.correct < 0.5))


def unsure(answer: Outcomes, think: Outcomes, nll: Float[np.ndarray, "seeds questions"], threshold: float) -> Outcomes:
    """Answers first, and thinks again from the beginning where that answer's NLL a token is above the threshold.

    No module decides; both completions are paid for where it thinks. An answer that was never given (NaN) is unsure.
    """
    again = ~(nll <= threshold)
    return choose(answer, think, again, np.where(again, answer.tokens, 0.0))


def abstaining(outcomes: Outcomes, nll: Float[np.ndarray, "seeds questions"], coverage: float) -> tuple[float, float]:
    """Answers only the share of each seed's questions whose answers are surest, by the NLL a token of the answer itself.

    An answer that was never given (NaN) is the least sure.

    Returns:
      The accuracy among these, and the tokens that were written for each of them, those of the others included.
    """
    count = max(1, round(coverage * nll.shape[1]))
    kept = np.argsort(np.where(np.isnan(nll), np.inf, nll), axis=1, kind="stable")[:, :count]
    accuracy = np.take_along_axis(outcomes.correct, kept, axis=1).mean()
    return float(accuracy), float(outcomes.tokens.sum() / kept.size)


def tokens_saved(policy: Outcomes, answer: Outcomes, think: Outcomes) -> float | None:
    """Returns tokens an answer that the policy saves against a mixture at random of both modes that is as accurate.

    None where no mixture is: the policy is less accurate than answering first, or more accurate than thinking first, or thinking
    does not pay at all.
    """
    gain = think.accuracy - answer.accuracy
    if gain <= 0 or not answer.accuracy <= policy.accuracy <= think.accuracy:
        return None
    rate = (policy.accuracy - answer.accuracy) / gain
    return at_rate(answer, think, rate).tokens_per_answer - policy.tokens_per_answer


def bootstrap(
    values: Float[np.ndarray, "seeds questions"],
    groups: Int[np.ndarray, "questions"],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Computes the percentile interval of the mean, over drawn seeds and drawn groups of questions.

    Questions about one story are drawn together; seeds (if there are several) are drawn too, for another seed would be another
    student. Pass differences of two arms for a paired interval.
    """
    rng = np.random.default_rng(seed)
    _, index = np.unique(groups, return_inverse=True)
    sizes = np.bincount(index).astype(float)
    sums = np.stack([np.bincount(index, row) for row in values])  # [seeds, groups]
    drawn = rng.integers(0, len(sizes), (resamples, len(sizes)))
    which = rng.integers(0, len(sums), (resamples, len(sums)))
    totals = np.array([sums[s][:, g].sum() / (len(s) * sizes[g].sum()) for s, g in zip(which, drawn, strict=True)])
    low, high = np.quantile(totals, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def stack(parts: Sequence[Outcomes]) -> Outcomes:
    """Stacks outcomes of one seed each."""
    return Outcomes(np.concatenate([p.correct for p in parts]), np.concatenate([p.tokens for p in parts]))
