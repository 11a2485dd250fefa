"""Agreement and audits against closed forms, scikit-learn, numerical derivatives and counting out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from smallr.review.statistics import cohens_kappa, errors_of_rest, population_errors, rows_needed, share


def ratings(table):
    pairs = [(a, b) for a, row in enumerate(table) for b, count in enumerate(row) for _ in range(count)]
    return zip(*pairs, strict=True)


def test_kappa_by_hand():
    kappa = cohens_kappa(*ratings([[20, 5], [10, 15]]))
    assert (kappa.agreement, kappa.value, kappa.rows) == (0.7, pytest.approx(0.4), 50)  # chance 0.5
    assert cohens_kappa("aabb", "aabb").value == 1
    assert cohens_kappa("aabb", "bbaa").value == -1
    assert cohens_kappa("abab", "aabb").value == 0
    assert math.isnan(cohens_kappa("aa", "aa").value)
    assert cohens_kappa("", "").rows == 0


def test_kappa_of_three_verdicts_against_scikit_learn_and_its_error_against_the_delta_method():
    metrics = pytest.importorskip("sklearn.metrics")
    table = np.array([[22, 4, 1], [6, 30, 3], [2, 5, 27]])
    first, second = ratings(table)
    kappa = cohens_kappa(first, second)
    assert kappa.value == pytest.approx(metrics.cohen_kappa_score(first, second), abs=1e-12)

    def of(p):
        chance = p.sum(1) @ p.sum(0)
        return (np.trace(p) - chance) / (1 - chance)

    p, step = table / table.sum(), 1e-6
    gradient = np.zeros_like(p)
    for place in np.ndindex(p.shape):
        change = np.zeros_like(p)
        change[place] = step
        gradient[place] = (of(p + change) - of(p - change)) / (2 * step)
    variance = ((p * gradient**2).sum() - (p * gradient).sum() ** 2) / table.sum()
    assert kappa.error == pytest.approx(math.sqrt(variance), rel=1e-6)
    low, high = kappa.interval()
    assert low < kappa.value < high


def test_kappa_of_a_simulated_second_reviewer():
    """Who repeats the first with probability r, and else draws from the same shares, has kappa r."""
    rng = np.random.default_rng(0)
    first = rng.choice(3, 4000, p=(0.6, 0.3, 0.1))
    second = np.where(rng.random(4000) < 0.7, first, rng.choice(3, 4000, p=(0.6, 0.3, 0.1)))
    kappa = cohens_kappa(first.tolist(), second.tolist())
    assert abs(kappa.value - 0.7) < 2.5 * kappa.error < 0.04


def test_a_share_has_wilsons_interval():
    assert share(8, 10).interval() == pytest.approx(stats.binomtest(8, 10).proportion_ci(method="wilson"), abs=1e-12)
    assert share(0, 0).interval() == (0, 1)


@pytest.mark.parametrize(
    ("wrong", "checked", "total"), [(0, 10, 40), (3, 10, 40), (10, 10, 40), (2, 40, 40), (0, 1, 1)]
)
def test_bounds_of_a_population_by_counting_out(wrong, checked, total):
    def likely(number):
        draws = math.comb(total, checked)
        chance = [math.comb(number, k) * math.comb(total - number, checked - k) / draws for k in range(checked + 1)]
        return sum(chance[wrong:]) > 0.025 and sum(chance[: wrong + 1]) > 0.025

    possible = [number for number in range(wrong, total - checked + wrong + 1) if likely(number)]
    assert population_errors(wrong, checked, total) == (possible[0], possible[-1])


def test_the_bounds_hold_as_often_as_they_say():
    rng = np.random.default_rng(1)
    found = rng.hypergeometric(30, 270, 60, 400)
    bounds = {wrong: population_errors(int(wrong), 60, 300) for wrong in set(found.tolist())}
    assert np.mean([bounds[wrong][0] <= 30 <= bounds[wrong][1] for wrong in found.tolist()]) >= 0.95


def test_what_is_known_is_taken_off_the_rest():
    rest = errors_of_rest(found=5, checked=50, known=12, decided=80, total=1000)
    low, high = population_errors(5, 50, 1000)
    assert (rest.rows, rest.wrong, rest.low, rest.high) == (920, pytest.approx(88), low - 12, high - 12)
    assert errors_of_rest(0, 10, 0, 10, 10).high == 0


def test_how_many_more_rows_to_check():
    assert rows_needed(10, 100, 10**9, 0.05) == pytest.approx(
        stats.norm.ppf(0.975) ** 2 * 0.1148 * 0.8852 / 0.0025 - 100, abs=1
    )
    assert rows_needed(10, 100, 120, 0.05) < 20  # all there are is enough
    assert rows_needed(0, 5000, 10**6, 0.05) == 0
