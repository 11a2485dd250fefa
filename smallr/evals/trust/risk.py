"""Computes what a confidence is worth: how well it is calibrated, and how few errors are left where it is high.

Every figure takes answers with weights, one row of weights a resample, so that a bootstrap is one call. Answers are
sorted by falling confidence first (`Sorted`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

BINS = 10
RISKS = (0.01, 0.05, 0.10)
_BLOCK = 200  # resamples at once, so that memory stays small

Weights = Int[np.ndarray, "R N"]
Figure = Float[np.ndarray, "R"]


@dataclasses.dataclass(frozen=True)
class Sorted:
    """Holds answers by falling confidence.

    Attributes:
      confidence: of each answer.
      correct: 1 for a right one, 0 for a wrong one.
      question: number of its question.
      ends: index of the last answer of each run of equal confidence; a threshold takes all of them or none.
    """

    confidence: Float[np.ndarray, "N"]
    correct: Float[np.ndarray, "N"]
    question: Int[np.ndarray, "N"]
    ends: Int[np.ndarray, "G"]

    @classmethod
    def of(cls, confidence: Sequence[float], correct: Sequence[float], question: Sequence[int] | None = None) -> Sorted:
        """Sorts answers; without questions each answer is one.

        Raises:
          ValueError: no answers, or a confidence outside of [0, 1].
        """
        confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
        if not len(confidence) or not ((confidence >= 0) & (confidence <= 1)).all():
            raise ValueError("confidences must be from 0 to 1, and there must be one")
        order = np.argsort(-confidence, kind="stable")
        question = np.arange(len(order)) if question is None else np.asarray(question)
        confidence = confidence[order]
        ends = np.flatnonzero(np.append(confidence[:-1] != confidence[1:], True))
        return cls(confidence, correct[order], question[order], ends)

    def ones(self) -> Weights:
        """Returns the weights of the answers as they are."""
        return np.ones((1, len(self.confidence)), np.int64)


def accuracy(answers: Sorted, weights: Weights) -> Figure:
    """Computes the share of right answers."""
    return (weights @ answers.correct) / weights.sum(1)


def mean_confidence(answers: Sorted, weights: Weights) -> Figure:
    """Computes the mean confidence; above the accuracy a model is too sure of itself."""
    return (weights @ answers.confidence) / weights.sum(1)


def brier(answers: Sorted, weights: Weights) -> Figure:
    """Computes the mean of (confidence - correct)^2."""
    return (weights @ (answers.confidence - answers.correct) ** 2) / weights.sum(1)


def bin_of(confidence: Float[np.ndarray, "N"], bins: int = BINS) -> Int[np.ndarray, "N"]:
    """Returns the number of the bin, of equal width, that holds each confidence; 1 is in the last."""
    return np.minimum((confidence * bins).astype(int), bins - 1)


def ece(answers: Sorted, weights: Weights, bins: int = BINS) -> Figure:
    """Computes the expected calibration error: |accuracy - mean confidence| of each bin, weighted by its answers."""
    in_bin = bin_of(answers.confidence, bins)[:, None] == np.arange(bins)
    gaps = weights @ (in_bin * (answers.correct - answers.confidence)[:, None])
    return np.abs(gaps).sum(1) / weights.sum(1)


def aurc(answers: Sorted, weights: Weights) -> Figure:
    """Computes the area under the risk-coverage curve: the mean risk of the i most confident answers over all i.

    Answers of equal confidence stand in random order, and the expected risk is taken: with W answers and E errors before
    them, the j-th of g such answers with e errors has risk (E + e j / g) / (W + j). The sum over j is
    e + (E - e W / g) (H(W + g) - H(W)) with harmonic numbers H.
    """
    before_w, before_e, w, e = _groups(answers, weights)
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, int(weights.sum(1).max()) + 1))])
    rise = harmonic[before_w + w] - harmonic[before_w]
    share = np.divide(e, w, out=np.zeros(e.shape), where=w > 0)
    return (share * w + (before_e - share * before_w) * rise).sum(1) / weights.sum(1)


def auroc(answers: Sorted, weights: Weights) -> Figure:
    """Computes the probability that a right answer is more confident than a wrong one, ties counted half; NaN without both."""
    before_w, before_e, w, e = _groups(answers, weights)
    right, wrong = (w - e), e
    before_right = before_w - before_e
    pairs = (weights @ answers.correct) * (weights @ (1 - answers.correct))
    wins = (wrong * (before_right + 0.5 * right)).sum(1)
    return np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)


def coverage_at(answers: Sorted, weights: Weights, risk: float) -> Figure:
    """Computes the largest share of answers that a threshold lets through at no more than this risk; 0 if none does."""
    before_w, before_e, w, e = _groups(answers, weights)
    passed, errors = before_w + w, before_e + e
    good = (errors <= risk * passed + 1e-12) & (passed > 0)
    return np.where(good, passed, 0).max(1) / weights.sum(1)


def _groups(answers: Sorted, weights: Weights) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns [R, G] answers and errors before each run of equal confidence, and in it."""
    passed = np.cumsum(weights, 1)[:, answers.ends]
    errors = np.cumsum(weights * (1 - answers.correct), 1)[:, answers.ends]
    before_w, before_e = (np.pad(each, ((0, 0), (1, 0)))[:, :-1] for each in (passed, errors))
    return before_w, before_e, passed - before_w, errors - before_e


FIGURES: Mapping[str, Callable[[Sorted, Weights], Figure]] = {
    "accuracy": accuracy,
    "confidence": mean_confidence,
    "ece": ece,
    "brier": brier,
    "aurc": aurc,
    "auroc": auroc,
    **{f"coverage@{risk:.0%}": (lambda answers, weights, risk=risk: coverage_at(answers, weights, risk)) for risk in RISKS},
}  # fmt: skip


def figures(answers: Sorted) -> dict[str, float]:
    """Returns all figures of the answers."""
    return {name: float(figure(answers, answers.ones())[0]) for name, figure in FIGURES.items()}


def bootstrap(
    sets: Sequence[Sorted], resamples: int = 1000, seed: int = 0
) -> list[dict[str, Float[np.ndarray, "resamples"]]]:
    """Draws questions with replacement, the same ones for all sets, and returns each figure of each resample.

    Args:
      sets: one or more models' answers to the same questions.
      resamples: number of draws.
      seed: of the draws.
    """
    questions = max(int(answers.question.max()) for answers in sets) + 1
    rng = np.random.default_rng(seed)
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in sets]
    for start in range(0, resamples, _BLOCK):
        count = min(_BLOCK, resamples - start)
        drawn = rng.multinomial(questions, np.full(questions, 1 / questions), count)
        for answers, part in zip(sets, parts, strict=True):
            weights = drawn[:, answers.question]
            part.append({name: figure(answers, weights) for name, figure in FIGURES.items()})
    return [{name: np.concatenate([each[name] for each in part]) for name in FIGURES} for part in parts]


def interval(values: Float[np.ndarray, "resamples"], confidence: float = 0.95) -> tuple[float, float] | None:
    """Returns the bootstrap's percentiles; None where a figure is not defined in any resample."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.quantile(known, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)
