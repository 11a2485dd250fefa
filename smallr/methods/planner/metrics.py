"""Measures discriminators and picks: pairwise accuracy, F1, Hit@1, MRR, execution match, and what is said of rationales."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

Labels = Sequence[Sequence[bool]]  # of each problem, of each of its candidates
Scores = Sequence[Sequence[float]]
THRESHOLD = 0.5  # a plan that scores above it is said to be correct


def pairwise_accuracy(labels: Labels, scores: Scores) -> float:
    """Returns the share of pairs of one problem with different labels in which the correct plan scores strictly higher.

    Pairs of all problems are pooled. NaN where there is none.
    """
    wins, pairs = (
        zip(*(_pairs(*each) for each in zip(labels, scores, strict=True)), strict=True) if labels else ((), ())
    )
    return sum(wins) / sum(pairs) if sum(pairs) else math.nan


def _pairs(labels: Sequence[bool], scores: Sequence[float]) -> tuple[int, int]:
    right = [value for value, label in zip(scores, labels, strict=True) if label]
    wrong = [value for value, label in zip(scores, labels, strict=True) if not label]
    return sum(good > bad for good in right for bad in wrong), len(right) * len(wrong)


def macro_f1(labels: Labels, scores: Scores) -> float:
    """Returns the mean of the F1 of both classes, of plans pooled; a class that is never right has 0."""
    truth = [label for each in labels for label in each]
    said = [value > THRESHOLD for each in scores for value in each]
    return float(np.mean([_f1(truth, said, label) for label in (True, False)]))


def _f1(truth: Sequence[bool], said: Sequence[bool], label: bool) -> float:
    hits = sum(t == s == label for t, s in zip(truth, said, strict=True))
    total = sum(t == label for t in truth) + sum(s == label for s in said)
    return 2 * hits / total if total else 0.0


def reciprocal_ranks(labels: Labels, scores: Scores) -> list[float]:
    """Returns 1 / rank of the first correct plan of each problem, by a stable sort; 0 where none is correct."""
    ranks = []
    for truth, values in zip(labels, scores, strict=True):
        order = sorted(range(len(values)), key=lambda index: -values[index])
        ranks.append(next((1.0 / place for place, index in enumerate(order, 1) if truth[index]), 0.0))
    return ranks


def hits(labels: Labels, scores: Scores) -> list[bool]:
    """Returns whether the first plan of each problem, by a stable sort, is correct."""
    return [rank == 1.0 for rank in reciprocal_ranks(labels, scores)]


def bootstrap(
    measure: Callable[[Labels, Scores], float],
    labels: Labels,
    scores: Scores,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the 95 % interval of a measure by resampling problems, percentiles; NaN where it is not defined."""
    rng, values = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = rng.integers(0, len(labels), len(labels))
        values.append(measure([labels[i] for i in drawn], [scores[i] for i in drawn]))
    known = [value for value in values if not math.isnan(value)]
    return tuple(map(float, np.quantile(known, (0.025, 0.975)))) if known else (math.nan, math.nan)


def pairwise_interval(labels: Labels, scores: Scores, *, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Returns the bootstrap interval of `pairwise_accuracy`, whose pairs are counted once."""
    counts = np.array([_pairs(*each) for each in zip(labels, scores, strict=True)], float).reshape(-1, 2)
    if not counts[:, 1].sum():
        return math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(0, len(counts), (resamples, len(counts)))
    wins, pairs = counts[drawn].sum(1).T
    return tuple(map(float, np.quantile(wins[pairs > 0] / pairs[pairs > 0], (0.025, 0.975))))


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
