"""Statistics against closed forms, enumeration and other formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from smallr.evals.statistics import (
    Estimate,
    majority_is_right,
    mcnemar,
    mean_pass_at_k,
    paired_difference,
    pass_at_1,
    pass_at_k,
)


@pytest.mark.parametrize(("samples", "correct"), [(1, 0), (1, 1), (5, 2), (7, 1), (8, 8), (6, 0)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(samples, correct):
    outcomes = [1] * correct + [0] * (samples - correct)
    for k in range(1, samples + 1):
        subsets = list(itertools.combinations(outcomes, k))
        assert pass_at_k(samples, correct, k) == pytest.approx(np.mean([any(subset) for subset in subsets]), abs=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow():
    exact = 1 - math.comb(9_990, 100) / math.comb(10_000, 100)
    assert pass_at_k(10_000, 10, 100) == pytest.approx(exact, rel=1e-9)
    with pytest.raises(ValueError, match="pass@3 needs at least 3 samples, there are 2"):
        pass_at_k(2, 1, 3)


def test_one_sample_a_question_gives_the_error_of_a_mean():
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    found = pass_at_1([[value] for value in values])
    assert found.value == pytest.approx(5 / 7)
    assert found.error == pytest.approx(np.std(values, ddof=1) / math.sqrt(7), rel=1e-12)


def test_repeating_a_sample_does_not_make_the_error_smaller():
    values = [1.0, 0.0, 1.0, 1.0, 0.0]
    once, often = (pass_at_1([[value] * count for value in values]) for count in (1, 10))
    assert often.value == pytest.approx(once.value)
    assert often.error == pytest.approx(once.error)


def test_equal_clusters_have_the_error_of_their_means_and_unequal_ones_that_of_simulation():
    rng = np.random.default_rng(0)
    questions = [list(rng.integers(0, 2, 4).astype(float)) for _ in range(50)]
    means = [np.mean(question) for question in questions]
    assert pass_at_1(questions).error == pytest.approx(np.std(means, ddof=1) / math.sqrt(50), rel=1e-12)

    def draw() -> list[list[float]]:
        rates = rng.beta(0.5, 0.5, 80)
        return [list((rng.random(1 + i % 5) < rate).astype(float)) for i, rate in enumerate(rates)]

    runs = [pass_at_1(draw()) for _ in range(600)]
    spread = np.std([run.value for run in runs])
    assert np.mean([run.error for run in runs]) == pytest.approx(spread, rel=0.1)


def test_too_few_questions_have_no_error():
    assert math.isnan(pass_at_1([]).value)
    assert pass_at_1([[1.0, 0.0]]).value == 0.5
    assert math.isnan(pass_at_1([[1.0, 0.0]]).error)
    assert mean_pass_at_k([[1.0, 0.0], [0.0, 0.0]], 2).value == 0.5


def test_intervals_are_wilsons():
    wrong = [0.0] * 40 + [1.0] * 10
    estimate = pass_at_1([[value] for value in wrong])
    reference = stats.binomtest(10, 50).proportion_ci(method="wilson")
    assert estimate.interval() == pytest.approx((reference.low, reference.high), abs=0.003)  # 49 and not 50 inside
    nothing = Estimate(0.0, 0.0, 20).interval()
    reference = stats.binomtest(0, 20).proportion_ci(method="wilson")
    assert nothing == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert Estimate(1.0, 0.0, 20).interval()[1] == 1.0


def test_majority():
    assert majority_is_right(["5", "7", "5"], [True, False, True])
    assert not majority_is_right(["5", "7", "7"], [True, False, False])
    assert majority_is_right(["5", "7"], [True, False])  # a tie goes to the first
    assert not majority_is_right(["7", "5"], [False, True])
    assert majority_is_right([None, None, "5"], [False, False, True])  # no answer, no vote
    assert not majority_is_right([None, None], [False, False])


def test_mcnemar_is_the_exact_binomial_test():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(10, 2) == pytest.approx(2 * stats.binom.cdf(2, 12, 0.5), rel=1e-12)
    assert mcnemar(2, 10) == mcnemar(10, 2)


def test_paired_interval_is_narrow_where_runs_agree():
    rng = np.random.default_rng(0)
    base = (rng.random(400) < 0.5).astype(float)
    other = base.copy()
    other[:20] = 1.0  # better on some of the first twenty, equal elsewhere
    found = paired_difference([[value] for value in base], [[value] for value in other])
    better = int((other > base).sum())
    assert (found.better, found.worse, found.questions) == (better, 0, 400)
    assert found.difference == pytest.approx(better / 400)
    gaps = other - base
    normal = 1.96 * gaps.std(ddof=1) / math.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * normal, rel=0.1)
    assert found.low <= found.difference <= found.high
    again = paired_difference([[value] for value in base], [[value] for value in other])
    assert (again.low, again.high) == (found.low, found.high)  # the same seed


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Two runs of three samples whose true difference is 0.1, 200 times: 95 % intervals miss about 10."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        rate = rng.uniform(0.0, 0.9, 60)
        a, b = ((rng.random((60, 3)) < p[:, None]).astype(float) for p in (rate, rate + 0.1))
        found = paired_difference(a, b, resamples=400)
        covered += found.low <= 0.1 <= found.high
    assert 180 <= covered <= 199


def test_runs_of_different_questions_are_refused():
    with pytest.raises(ValueError, match="1 and 2"):
        paired_difference([[1.0]], [[1.0], [0.0]])
