"""Scores sub-questions without a solver: against reference sub-questions of the problem, and for repeats.

granularity   1 - |n_gen - n_ref| / n_gen
BLEU          mean of BLEU-1 to BLEU-4 of the sub-questions joined by spaces, unsmoothed, by white space (sacrebleu)
repeated      whether a sub-question occurs twice

A student that wrote none has 0, 0 and no repeat, as in the published evaluation. Granularity can be negative.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sacrebleu.metrics import BLEU

ORDERS = (1, 2, 3, 4)
_BLEU = BLEU(max_ngram_order=max(ORDERS), tokenize="none", smooth_method="none")


@dataclasses.dataclass(frozen=True)
class TextScores:
    """Holds the scores of one problem's sub-questions."""

    granularity: float
    bleu: float
    repeated: bool


def score_texts(written: Sequence[str], reference: Sequence[str]) -> TextScores:
    """Scores a student's sub-questions.

    Args:
      written: by the student.
      reference: at least one sub-question.
    """
    if not written:
        return TextScores(0.0, 0.0, False)
    granularity = 1 - abs(len(written) - len(reference)) / len(written)
    return TextScores(granularity, mean_bleu(" ".join(written), " ".join(reference)), is_repeated(written))


def mean_bleu(text: str, reference: str) -> float:
    """Returns the mean of BLEU-1 to BLEU-4 of one text, from 0 to 1; one without a match of some order scores 0 there."""
    found = _BLEU.corpus_score([text], [[reference]])
    scores = [
        BLEU.compute_bleu(
            found.counts[:order],
            found.totals[:order],
            found.sys_len,
            found.ref_len,
            smooth_method="none",
            max_ngram_order=order,
        ).score
        for order in ORDERS
    ]
    return sum(scores) / len(scores) / 100


def is_repeated(written: Sequence[str]) -> bool:
    """Returns whether a sub-question occurs twice, white space aside."""
    texts = [" ".join(text.split()) for text in written]
    return len(set(texts)) < len(texts)
