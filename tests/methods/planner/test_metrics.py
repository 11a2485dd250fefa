"""The spec's formulas on cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from smallr.methods.planner import metrics
from smallr.methods.planner.baselines import BASELINES, executable_best_of_n, majority, majority_of_plans
from smallr.methods.planner.discriminators.base import Judgement, score, scores
from smallr.methods.planner.rows import Executed
from smallr.methods.planner.task import Outcome

LABELS = [[True, False, False], [False, True], [True, True], [False]]
SCORES = [[0.6, 0.6, 0.2], [0.9, 0.3], [0.1, 0.8], [-0.5]]


def test_pairs_are_pooled_and_ties_count_as_wrong():
    # First problem: a tie (wrong) and a win; second: a loss; the others have no pair.
    assert metrics.pairwise_accuracy(LABELS, SCORES) == pytest.approx(1 / 3)
    assert math.isnan(metrics.pairwise_accuracy([[True]], [[0.3]]))
    counts = metrics.pair_counts(LABELS, SCORES)
    assert counts == [(1, 2), (0, 1), (0, 0), (0, 0)]
    low, high = metrics.pairwise_interval(counts)
    assert 0 <= low <= 1 / 3 <= high <= 1
    assert all(map(math.isnan, metrics.pairwise_interval([(0, 0)])))


def test_intervals_are_those_of_problems_drawn_one_by_one():
    rng = np.random.default_rng(1)
    labels = [list(rng.random(4) < 0.5) for _ in range(30)]
    scores = [[0.4 * label + 0.8 * rng.random() for label in each] for each in labels]
    other = [[0.5] * len(each) for each in labels]  # a judge of ties is never right
    drawn = []
    for _ in range(400):
        which = rng.integers(0, 30, 30)
        picked = [labels[i] for i in which], [scores[i] for i in which]
        drawn.append((metrics.pairwise_accuracy(*picked), metrics.macro_f1(*picked)))
    (pair_low, f1_low), (pair_high, f1_high) = np.quantile(drawn, (0.025, 0.975), axis=0)
    counts = metrics.pair_counts(labels, scores)
    assert metrics.pairwise_interval(counts) == pytest.approx((pair_low, pair_high), abs=0.03)
    assert metrics.macro_f1_interval(labels, scores) == pytest.approx((f1_low, f1_high), abs=0.03)
    gap = metrics.pairwise_gap(counts, metrics.pair_counts(labels, other))
    assert gap == (metrics.pairwise_accuracy(labels, scores), *metrics.pairwise_interval(counts))
    assert metrics.pairwise_gap(counts, counts) == (0.0, 0.0, 0.0)
    assert metrics.mean_interval([1.0, 1.0]) == (1.0, 1.0)


def test_macro_f1_at_one_half():
    # Said correct: 0.6, 0.6, 0.9, 0.8. Truth: 4 of 8. Hits: 0.6 and 0.8 as correct; 0.2 and -0.5 as wrong.
    correct, wrong = 2 * 2 / (4 + 4), 2 * 2 / (4 + 4)
    assert metrics.macro_f1(LABELS, SCORES) == pytest.approx((correct + wrong) / 2)
    assert metrics.macro_f1([[True]], [[0.5]]) == 0.0  # 0.5 is not above 0.5, and neither class is ever right


def test_hits_and_ranks_by_a_stable_sort_with_all_questions():
    assert metrics.reciprocal_ranks(LABELS, SCORES) == [1.0, 0.5, 1.0, 0.0]
    assert metrics.reciprocal_ranks([[False, True]], [[0.5, 0.5]]) == [0.5]  # a tie keeps the order


def test_scores_of_verdicts():
    true, false, none = Judgement(True, 0.8), Judgement(False, 0.3), Judgement()
    assert [score(each) for each in (true, false, none)] == [0.8, 0.3, -0.5]
    assert [score(each, "hard") for each in (true, false, none)] == [1.0, 0.0, -0.5]
    outcomes = [Outcome(), Outcome(error="no such table"), Outcome()]
    assert scores([true, true, none], outcomes, "check") == [0.8, -1.0, -0.5]
    assert scores([true, true, none], outcomes, "naive") == [0.8, 0.8, -0.5]
    with pytest.raises(ValueError, match=r"choose config\.discriminator\.rules=hard"):
        score(Judgement(True, None))


def test_text_statistics():
    found = metrics.text_statistics(["a b a b. c", ""])
    assert found["words"] == 5
    assert found["one_minus_ttr"] == pytest.approx(1 - 4 / 5)  # a, b, b. and c
    assert found["repetition_2"] == 0.0
    assert found["entropy"] == pytest.approx(-(0.4 * math.log2(0.4) + 3 * 0.2 * math.log2(0.2)))
    assert metrics.text_statistics(["go on. go on. stop"])["repetition"] == pytest.approx(1 / 3)


def candidate(group: int, votes: int = 1, error: str = "", empty: bool = False) -> Executed:
    return Executed(f"plan {group} {votes}", votes, error, "name" if error else "", "", empty, group, None)


def test_baselines():
    found = [
        candidate(-1, 9, error="no"),
        candidate(0, 1, empty=True),
        candidate(1, 2),
        candidate(2, 1),
        candidate(2, 2),
    ]
    picks = {name: pick(found) for name, pick in BASELINES.items()}
    assert picks == {
        "first candidate": 0,
        "first executable": 1,
        "executable best-of-N": 2,
        "majority of plans": 3,
        "majority of proposals": 3,
    }
    assert majority([candidate(0, 1), candidate(1, 3)]) == 1
    assert majority_of_plans([candidate(0, 1), candidate(1, 3)]) == 0
    assert executable_best_of_n([candidate(-1, error="no"), candidate(0, empty=True)]) == 1
    assert all(pick([]) is None for pick in BASELINES.values())
    assert majority([candidate(-1, error="no")]) == 0
