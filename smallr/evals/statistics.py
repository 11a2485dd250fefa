"""Computes scores of right and wrong answers with their uncertainty. Scores are grouped by question.

Samples of one question are not independent, so questions are the unit of every error and of every resampling.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import special

Scores = Sequence[Sequence[float]]  # of each question, of each of its samples


@dataclass(frozen=True)
class Estimate:
    """Holds a mean of values in [0, 1], its standard error (NaN below two questions) and the number of questions."""

    value: float
    error: float
    questions: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Computes Wilson's score interval for as many independent answers as have this standard error.

        Unlike value ± 1.96 errors it stays within [0, 1] and does not shrink to a point where all are right or wrong;
        there the questions are taken as independent.
        """
        if not self.questions or math.isnan(self.value):
            return 0.0, 1.0
        variance = self.value * (1 - self.value)
        count = variance / self.error**2 if variance > 0 and self.error > 0 else self.questions
        z = float(special.ndtri(0.5 + confidence / 2))
        centre = (self.value + z * z / (2 * count)) / (1 + z * z / count)
        width = z / (1 + z * z / count) * math.sqrt(variance / count + z * z / (4 * count**2))
        return max(centre - width, 0.0), min(centre + width, 1.0)


def pass_at_1(scores: Scores) -> Estimate:
    """Returns the mean over all samples, with the standard error clustered by question.

    sqrt(sum_q (sum_i (s_qi - mean))^2) / n (arXiv 2411.00640, eq. 4), times sqrt(Q / (Q - 1)), so that one sample a question
    gives the usual standard error of a mean.
    """
    sizes = np.array([len(question) for question in scores], float)
    totals = np.array([sum(question) for question in scores], float)
    count, questions = sizes.sum(), len(scores)
    if not count:
        return Estimate(math.nan, math.nan, 0)
    mean = totals.sum() / count
    if questions < 2:
        return Estimate(float(mean), math.nan, questions)
    spread = np.sqrt(np.sum((totals - sizes * mean) ** 2)) / count
    return Estimate(float(mean), float(spread * math.sqrt(questions / (questions - 1))), questions)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Computes the probability that one of k samples is right: 1 - C(n-c, k) / C(n, k), unbiased (arXiv 2107.03374, eq. 1).

    Raises:
      ValueError: k is greater than the number of samples.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, there are {samples}")
    if samples - correct < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - correct + 1, samples + 1)))


def mean_pass_at_k(scores: Scores, k: int) -> Estimate:
    """Averages pass@k over questions, with the standard error over questions."""
    return pass_at_1([[pass_at_k(len(question), round(sum(question)), k)] for question in scores])


def majority_is_right(answers: Sequence[str | None], correct: Sequence[bool]) -> bool:
    """Returns whether the most frequent answer is right (maj@k).

    Samples without an answer do not vote. Of several answers with equally many votes the one that was given first counts.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return False
    most = max(votes.values())
    first = next(index for index, answer in enumerate(answers) if answer is not None and votes[answer] == most)
    return bool(correct[first])


@dataclass(frozen=True)
class Difference:
    """Holds the difference B minus A on the same questions.

    Attributes:
      difference: of the means over questions.
      low, high: bootstrap interval.
      better, worse: questions on which B scores higher, lower.
      p_value: exact McNemar test if each question has one sample in both runs; else a sign test of the same form on the
        questions whose means differ.
    """

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    better: int
    worse: int
    questions: int
    p_value: float


def paired_difference(
    a: Scores, b: Scores, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Compares two runs question by question.

    The interval is of a bootstrap over questions (percentiles): a question is drawn with all its samples of both runs, so
    that the difficulty that the runs share cancels.

    Raises:
      ValueError: different numbers of questions, or none.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"two runs need the same questions, there are {len(a)} and {len(b)}")
    means_a, means_b = (np.array([np.mean(question) for question in scores]) for scores in (a, b))
    gaps = means_b - means_a
    rng = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for start in range(0, resamples, 500):  # in blocks, so that memory stays small
        block = draws[start : start + 500]
        block[:] = gaps[rng.integers(0, len(gaps), (len(block), len(gaps)))].mean(1)
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    return Difference(
        float(means_a.mean()),
        float(means_b.mean()),
        float(gaps.mean()),
        float(low),
        float(high),
        better,
        worse,
        len(gaps),
        mcnemar(better, worse),
    )


def mcnemar(better: int, worse: int) -> float:
    """Computes the two-sided exact McNemar test: of the questions on which two runs differ, each is as likely to go either way."""
    from scipy import stats  # takes half a second to import

    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def bootstrap(
    values: Float[np.ndarray, "questions counts"],
    statistic: Callable[[Float[np.ndarray, "*draws counts"]], Float[np.ndarray, "*draws"]],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile interval of a statistic of sums over questions, when questions are drawn again.

    Draws for which the statistic is not defined (NaN) are left out.
    """
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), resamples)
    draws = statistic(weights @ values)
    low, high = np.nanquantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)
