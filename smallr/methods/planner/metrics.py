"""Measures discriminators and picks: pairwise accuracy, F1, Hit@1, MRR, execution match, and what is said of rationales."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

Labels = Sequence[Sequence[bool]]  # of each problem, of each of its candidates
Scores = Sequence[Sequence[float]]
THRESHOLD = 0.5  # a plan that scores above it is said to be correct
RESAMPLES = 2000


def pairwise_accuracy(labels: Labels, scores: Scores) -> float:
    """Returns the share of pairs of one problem with different labels in which the correct plan scores strictly higher.

    Pairs of all problems are pooled. NaN where there is none.
    """
    return _pooled(pair_counts(labels, scores))


def pair_counts(labels: Labels, scores: Scores) -> list[tuple[int, int]]:
    """Returns, for each problem, how many of its pairs are in the right order, and how many there are."""
    return [_pairs(*each) for each in zip(labels, scores, strict=True)]


def _pairs(labels: Sequence[bool], scores: Sequence[float]) -> tuple[int, int]:
    right = [value for value, label in zip(scores, labels, strict=True) if label]
    wrong = [value for value, label in zip(scores, labels, strict=True) if not label]
    return sum(good > bad for good in right for bad in wrong), len(right) * len(wrong)


def _pooled(counts: Sequence[tuple[int, int]]) -> float:
    wins, pairs = np.array(counts, float).reshape(-1, 2).sum(0)
    return float(wins / pairs) if pairs else math.nan


def pairwise_interval(counts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of pairwise accuracy from `pair_counts`; NaN where there is no pair."""
    wins, pairs = _resampled(np.array(counts, float).reshape(-1, 2)).T
    return _quantiles(wins[pairs > 0] / pairs[pairs > 0])


def pairwise_gap(counts: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> tuple[float, float, float]:
    """Returns by how much pairwise accuracy exceeds that of another judge of the same pairs, and the 95 % interval.

    Problems are resampled, and both judges have the same ones.
    """
    both = np.hstack([np.array(each, float).reshape(-1, 2) for each in (counts, other)])
    drawn = _resampled(both)
    drawn = drawn[drawn[:, 1] > 0]
    return _pooled(counts) - _pooled(other), *_quantiles((drawn[:, 0] - drawn[:, 2]) / drawn[:, 1])


def macro_f1(labels: Labels, scores: Scores) -> float:
    """Returns the mean of the F1 of both classes, of plans pooled; a class that is never right has 0."""
    return float(_macro_f1(_confusion(labels, scores).sum(0)))


def macro_f1_interval(labels: Labels, scores: Scores) -> tuple[float, float]:
    """Returns its 95 % bootstrap interval over problems."""
    return _quantiles(_macro_f1(_resampled(_confusion(labels, scores))))


def _confusion(labels: Labels, scores: Scores) -> np.ndarray:
    """Counts the plans of each problem: said to be right and right, wrong and wrong, and not as they are."""
    rows = []
    for truth, values in zip(labels, scores, strict=True):
        said = np.array(values) > THRESHOLD
        is_right = np.array(truth, bool)
        rows.append([np.sum(said & is_right), np.sum(~said & ~is_right), np.sum(said != is_right)])
    return np.array(rows, float).reshape(-1, 3)


def _macro_f1(counts: np.ndarray) -> np.ndarray:
    hits, errors = 2 * counts[..., :2], counts[..., 2:]
    return np.mean(hits / np.maximum(hits + errors, 1.0), axis=-1)


def reciprocal_ranks(labels: Labels, scores: Scores) -> list[float]:
    """Returns 1 / rank of the first correct plan of each problem, by a stable sort; 0 where none is correct."""
    ranks = []
    for truth, values in zip(labels, scores, strict=True):
        order = sorted(range(len(values)), key=lambda index: -values[index])
        ranks.append(next((1.0 / place for place, index in enumerate(order, 1) if truth[index]), 0.0))
    return ranks


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of a mean over problems."""
    sums = _resampled(np.array(values, float).reshape(-1, 1))[:, 0]
    return _quantiles(sums / max(len(values), 1))


def _resampled(counts: np.ndarray) -> np.ndarray:
    """Returns the sums of counts over problems, for as many problems drawn anew, once a resample."""
    problems = len(counts)
    drawn = np.random.default_rng(0).multinomial(problems, np.full(problems, 1.0 / problems), RESAMPLES)
    return drawn @ counts


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    return tuple(map(float, np.quantile(values, (0.025, 0.975)))) if len(values) else (math.nan, math.nan)


def text_statistics(texts: Sequence[str]) -> dict[str, float]:
    """Averages over rationales: how they repeat themselves, and the entropy of their words.

    repetition: share of sentences that stand there before; one_minus_ttr: share of words that do; repetition_2: share of
    pairs of words that do; entropy: of the words' frequencies, in bits; words: their number.
    """
    rows = [_statistics(text) for text in texts if text.split()]
    names = ("repetition", "one_minus_ttr", "repetition_2", "entropy", "words")
    return {name: float(np.mean([row[name] for row in rows])) if rows else math.nan for name in names}


def _statistics(text: str) -> dict[str, float]:
    words = text.lower().split()
    sentences = [part.strip().lower() for part in re.split(r"[.!?\n]+", text) if part.strip()]
    share = np.array(list(Counter(words).values()), float) / len(words)
    return {
        "repetition": _repeated(sentences),
        "one_minus_ttr": _repeated(words),
        "repetition_2": _repeated(list(itertools.pairwise(words))),
        "entropy": float(-(share * np.log2(share)).sum()),
        "words": len(words),
    }


def _repeated(items: Sequence[object]) -> float:
    return 1.0 - len(set(items)) / len(items) if items else 0.0
