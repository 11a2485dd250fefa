"""Off-policy estimates on a tabular process whose every trajectory is listed, so that expectations are sums, not samples."""

from __future__ import annotations

import numpy as np
import pytest

from smallr.core.errors import UserError
from smallr.evals.off_policy import (
    Logged,
    bootstrap,
    direct_method,
    doubly_robust,
    effective_size,
    importance_sampling,
    weighted_doubly_robust,
    weighted_importance_sampling,
)

HORIZON, GAMMA = 3, 0.9
MU = np.array([[0.25, 0.75], [0.5, 0.5]])  # [state, action]
PI = np.array([[0.6, 0.4], [0.1, 0.9]])
NEXT = np.array([[[0.75, 0.25], [0.5, 0.5]], [[0.25, 0.75], [1.0, 0.0]]])  # [state, action, next state]
REWARD = np.array([[1.0, 0.0], [0.3, -0.5]])
ENDS = 1  # action 1 in state 1 ends a trajectory, so lengths differ


def values() -> tuple[np.ndarray, np.ndarray]:
    """Q [t, state, action] and V [t, state] of PI, by dynamic programming."""
    q, v = np.zeros((HORIZON + 1, 2, 2)), np.zeros((HORIZON + 1, 2))
    for t in range(HORIZON - 1, -1, -1):
        q[t] = REWARD + GAMMA * NEXT @ v[t + 1]
        q[t, 1, ENDS] = REWARD[1, ENDS]
        v[t] = (PI * q[t]).sum(axis=1)
    return q, v


def population() -> tuple[list[list[tuple[int, int]]], list[float]]:
    """All trajectories as (state, action) pairs, with their probability under MU; the first state is 0."""
    paths, chances = [], []

    def go(path: list[tuple[int, int]], state: int, chance: float) -> None:
        for action in (0, 1):
            here, likely = [*path, (state, action)], chance * MU[state, action]
            if len(here) == HORIZON or (state, action) == (1, ENDS):
                paths.append(here)
                chances.append(likely)
                continue
            for following in (0, 1):
                if NEXT[state, action, following]:
                    go(here, following, likely * NEXT[state, action, following])

    go([], 0, 1.0)
    return paths, chances


def logged(pi=PI, mu=MU, q=None, v=None) -> Logged:
    """Each trajectory as often as its probability says: a log of just the right frequencies."""
    paths, chances = population()
    counts = np.array(chances) * 2**15
    assert np.array_equal(counts, np.round(counts))
    true_q, true_v = values()
    q, v = true_q if q is None else q, true_v if v is None else v
    columns = {name: np.zeros((len(paths), HORIZON)) for name in ("reward", "ratio", "q", "value")}
    used = np.zeros((len(paths), HORIZON), bool)
    for row, path in enumerate(paths):
        for t, (state, action) in enumerate(path):
            used[row, t] = True
            columns["reward"][row, t] = REWARD[state, action]
            columns["ratio"][row, t] = pi[state, action] / mu[state, action]
            columns["q"][row, t], columns["value"][row, t] = q[t, state, action], v[t, state]
    return Logged(used=used, gamma=GAMMA, **columns).take(np.repeat(np.arange(len(paths)), counts.astype(int)))


TRUTH = values()[1][0, 0]
WRONG_MU = np.array([[0.5, 0.5], [0.9, 0.1]])


def wrong_values() -> tuple[np.ndarray, np.ndarray]:
    """Q that is wrong everywhere, and the V that belongs to it."""
    q = values()[0] + np.array([[3.0, -2.0], [0.5, 1.0]])
    return q, (PI * q).sum(axis=2)


def test_importance_sampling_is_exact_in_expectation():
    assert importance_sampling(logged()) == pytest.approx(TRUTH, abs=1e-12)
    assert importance_sampling(logged(mu=WRONG_MU)) != pytest.approx(TRUTH, abs=0.05)


def test_weighted_importance_sampling_is_consistent():
    assert weighted_importance_sampling(logged()) == pytest.approx(TRUTH, abs=1e-12)
    rng = np.random.default_rng(0)
    whole = logged()
    errors = [
        np.std([weighted_importance_sampling(whole.take(rng.integers(0, 2**15, size))) - TRUTH for _ in range(60)])
        for size in (50, 5000)
    ]
    assert errors[1] < errors[0] / 5, "a hundred times the log: a tenth of the error"


def test_doubly_robust_needs_only_one_of_the_two_right():
    q, v = wrong_values()
    for estimate in (doubly_robust, weighted_doubly_robust):
        assert estimate(logged(q=q, v=v)) == pytest.approx(TRUTH, abs=1e-12)
    assert doubly_robust(logged(mu=WRONG_MU)) == pytest.approx(TRUTH, abs=1e-12)
    assert doubly_robust(logged(mu=WRONG_MU, q=q, v=v)) != pytest.approx(TRUTH, abs=0.05)
    assert direct_method(logged()) == pytest.approx(TRUTH, abs=1e-12)
    assert direct_method(logged(q=q, v=v)) != pytest.approx(TRUTH, abs=0.05)


def test_a_right_q_takes_the_variance():
    whole = logged()
    few = [whole.take(np.random.default_rng(seed).integers(0, 2**15, 40)) for seed in range(50)]
    assert np.std([doubly_robust(each) for each in few]) < 0.6 * np.std([importance_sampling(each) for each in few])


def test_the_own_log_is_its_own_mean():
    reward = np.array([1.0, 0.0, 0.0, 1.0])
    own = Logged.of_bandit(reward, np.ones(4), np.full(4, 0.3), np.full(4, 0.3))
    for estimate in (importance_sampling, weighted_importance_sampling, doubly_robust, weighted_doubly_robust):
        assert estimate(own) == pytest.approx(0.5)
    assert effective_size(own) == 4
    one = Logged.of_bandit(reward, np.array([0.0, 0.0, 0.0, 7.0]))
    assert (weighted_importance_sampling(one), effective_size(one)) == (1.0, 1.0)
    never = Logged.of_bandit(reward, np.zeros(4))
    assert np.isnan(weighted_importance_sampling(never))
    assert effective_size(never) == 0


def test_the_bootstrap_draws_whole_groups():
    scores, drawn = np.array([1.0, 0.0, 1.0, 0.0]), []

    def statistic(rows) -> float:
        drawn.append(tuple(sorted(rows)))
        return scores[rows].mean()

    found = bootstrap(statistic, ["a", "b", "a", "b"], resamples=400)
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)
    assert set(drawn) == {(0, 0, 2, 2), (0, 1, 2, 3), (1, 1, 3, 3)}
    narrow = bootstrap(lambda rows: scores[rows].mean(), range(4), resamples=400)
    assert narrow.low < 0.5 < narrow.high


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": np.array([[-1.0], [1.0]])}, "trajectory 0 has a ratio"),
        ({"ratio": np.ones((2, 2))}, r"ratio has shape \(2, 2\)"),
        ({"used": np.array([[True], [False]])}, "trajectory 1 has no step"),
        ({"gamma": 1.5}, "gamma 1.5"),
        ({"reward": np.zeros((0, 1))}, r"rewards of shape \(0, 1\)"),
    ],
)
def test_bad_logs_are_named(changes, message):
    good = {"reward": np.ones((2, 1)), "ratio": np.ones((2, 1)), "used": np.ones((2, 1), bool)}
    with pytest.raises(UserError, match=message):
        Logged(**(good | changes))


def test_what_an_estimate_needs_is_named():
    with pytest.raises(UserError, match="needs 'value'"):
        direct_method(Logged.of_bandit(np.ones(2), np.ones(2)))
