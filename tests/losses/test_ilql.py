"""The ILQL loss against closed forms, and on tasks whose optimum is known."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smallr.losses.ilql import TokenValues, ilql_terms, next_values
from tests.compiling import OPTIMISED

pytestmark = pytest.mark.usefixtures("cpu_mesh")

TEXTBOOK = {"gamma": 0.9, "tau": 0.9}


def random_row(seed=0, positions=12):
    """Two completions of 5 and 4 tokens in one row, and unused positions with numbers that must not count."""
    rng = np.random.default_rng(seed)
    values = TokenValues(
        *(jnp.asarray(rng.normal(size=(2, 1, positions)), jnp.float32) for _ in range(3)),
        jnp.asarray(rng.normal(size=(1, positions)), jnp.float32),
    )
    completion = np.zeros((1, positions), int)
    completion[0, 5:9] = 1
    used = np.arange(positions)[None] < 9
    return values, jnp.asarray(rng.normal(size=(1, positions)), jnp.float32), jnp.asarray(completion), jnp.asarray(used)


def by_hand(values, reward, completion, used, gamma, tau):
    """Walks the tokens one by one, as the formulas read."""
    found = np.zeros((3, reward.shape[1]))
    q, lse, target_q, value = (np.asarray(x, np.float64) for x in values)
    for t in range(reward.shape[1]):
        if not used[0, t]:
            continue
        last = t + 1 == reward.shape[1] or not used[0, t + 1] or completion[0, t + 1] != completion[0, t]
        target = reward[0, t] + (0 if last else gamma * value[0, t + 1])
        found[0, t] = np.mean([(q[i, 0, t] - target) ** 2 for i in range(2)])
        advantage = min(target_q[:, 0, t]) - value[0, t]
        found[1, t] = (1 - tau if advantage < 0 else tau) * advantage**2
        found[2, t] = np.mean([lse[i, 0, t] - q[i, 0, t] for i in range(2)])
    return found


def test_terms_are_those_of_the_formulas():
    row = random_row()
    terms = ilql_terms(*row, **TEXTBOOK)
    for term, expected in zip(terms, by_hand(*row, **TEXTBOOK), strict=True):
        np.testing.assert_allclose(term[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(terms)[:, 0, 9:], 0)


def test_completions_beside_each_other_equal_one_by_one():
    values, reward, completion, used = random_row()
    whole = ilql_terms(values, reward, completion, used, **TEXTBOOK)
    for start, stop in ((0, 5), (5, 9)):
        part = jax.tree.map(lambda x, a=start, b=stop: x[..., a:b], values)
        alone = ilql_terms(
            part,
            reward[:, start:stop],
            jnp.zeros((1, stop - start), int),
            jnp.ones((1, stop - start), bool),
            **TEXTBOOK,
        )
        for ours, theirs in zip(whole, alone, strict=True):
            np.testing.assert_array_equal(ours[:, start:stop], theirs)


def test_the_state_after_the_last_token_has_no_value():
    value = jnp.arange(1.0, 7.0)[None]
    completion, used = jnp.asarray([[0, 0, 2, 2, 2, 0]]), jnp.asarray([[True] * 5 + [False]])
    np.testing.assert_array_equal(next_values(value, completion, used), [[2, 0, 4, 5, 0, 0]])


def gradients(row, **options):
    def total(values):
        return sum(jnp.sum(term) for term in ilql_terms(values, *row[1:], **options))

    return jax.grad(total)(row[0])


def test_no_gradient_runs_through_the_target_copy_and_the_bootstrapped_value():
    row = random_row()
    found = gradients(row, **TEXTBOOK)
    np.testing.assert_array_equal(found.target_q, 0)
    advantage = jnp.min(row[0].target_q, axis=0) - row[0].value
    expected = -2 * jnp.where(advantage < 0, 0.1, 0.9) * advantage * row[3]  # that of L_V alone
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)


class TestAsReleased:
    """The released code differs in three terms; each of these fails for the textbook's."""

    options = TEXTBOOK | {"as_released": True}

    def test_the_sign_before_gamma(self):
        values, reward, completion, used = row = random_row()
        ours = ilql_terms(*row, **self.options)
        theirs = by_hand(values, reward, completion, used, gamma=-0.9, tau=0.9)
        np.testing.assert_allclose(ours.q[0], theirs[0], rtol=1e-5)
        np.testing.assert_allclose(ours.value[0], theirs[1], rtol=1e-5)
        assert np.abs(ours.q - ilql_terms(*row, **TEXTBOOK).q).max() > 0.1

    def test_a_gradient_through_the_next_value(self):
        row = random_row()
        only_q = {"gamma": 0.9, "tau": 0.5, "as_released": True}

        def total(values):
            return jnp.sum(ilql_terms(values, *row[1:], **only_q).q)

        found = jax.grad(total)(row[0]).value
        assert np.abs(found[0, 1:5]).min() > 0
        np.testing.assert_array_equal(found[0, [0, 5]], 0)  # the first state of a completion follows none

    def test_the_conservative_term_is_a_mean_over_unused_positions_too(self):
        values, reward, completion, used = random_row()
        ours = ilql_terms(values, reward, completion, used, **self.options).conservative
        everywhere = np.mean(np.asarray(values.q_log_sum_exp - values.q))
        np.testing.assert_allclose(ours[0, :9], everywhere, rtol=1e-5)
        np.testing.assert_array_equal(ours[0, 9:], 0)

    def test_nothing_else_differs(self):
        """Where the three terms cannot differ, without discount and unused positions, all sums and gradients are equal."""
        values, reward, completion, used = random_row()
        row = (jax.tree.map(lambda x: x[..., :9], values), reward[:, :9], completion[:, :9], used[:, :9])
        options = {"gamma": 0.0, "tau": 0.9}
        ours, theirs = (ilql_terms(*row, **options, as_released=flag) for flag in (True, False))
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(jnp.sum(a), jnp.sum(b), rtol=1e-5)
        released, textbook = (gradients(row, **options, as_released=flag) for flag in (True, False))
        for a, b in zip(released, textbook, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def learn(tokens, states, rewards, sizes, *, steps=1000, gamma=0.9, tau=0.9, conservative=0.0, mixing=0.05, seed=0):
    """Trains tables of Q (two of them) and V with the loss on logged episodes, one a row; NaN is a reward after the end."""
    used = ~np.isnan(rewards)
    arrays = tuple(map(jnp.asarray, (tokens, states, np.nan_to_num(rewards).astype(np.float32), used)))
    optimizer = optax.adam(0.02)

    def loss(tables, target, arrays):
        actions, where, reward, used = arrays
        rows = tables["q"][:, where]
        pick = partial(jnp.take_along_axis, indices=actions[None, ..., None], axis=3)
        values = TokenValues(
            pick(rows)[..., 0], jax.nn.logsumexp(rows, axis=3), pick(target[:, where])[..., 0], tables["v"][where]
        )
        terms = ilql_terms(values, reward, jnp.zeros(actions.shape, int), used, gamma=gamma, tau=tau)
        return sum(jnp.sum(t) for t in (terms.q, terms.value, conservative * terms.conservative)) / jnp.sum(used)

    @partial(jax.jit, compiler_options=OPTIMISED)
    def run(tables):
        def step(carry, _):
            tables, target, state = carry
            updates, state = optimizer.update(jax.grad(loss)(tables, target, arrays), state, tables)
            tables = optax.apply_updates(tables, updates)
            return (tables, target + mixing * (tables["q"] - target), state), None

        start = (tables, tables["q"], optimizer.init(tables))
        return jax.lax.scan(step, start, length=steps)[0][0]

    rng = np.random.default_rng(seed)
    tables = {
        "q": jnp.asarray(rng.normal(0, 0.01, (2, *sizes)), jnp.float32),
        "v": jnp.asarray(rng.normal(0, 0.01, sizes[0]), jnp.float32),
    }
    return jax.tree.map(np.asarray, run(tables))


def test_without_discount_q_is_the_mean_reward_of_an_action():
    rng = np.random.default_rng(0)
    actions, reward = rng.integers(0, 3, (400, 1)), rng.normal(size=(400, 1))
    tables = learn(actions, np.zeros_like(actions), reward, (1, 3), gamma=0.0)
    expected = [reward[actions == action].mean() for action in range(3)]
    np.testing.assert_allclose(tables["q"][:, 0], [expected] * 2, atol=2e-3)


@pytest.mark.parametrize("tau", [0.5, 0.9])
def test_v_is_the_expectile_of_q_over_the_data(tau):
    actions = np.array([[0]] * 60 + [[1]] * 30 + [[2]] * 10)
    reward = np.array([0.0, 1.0, 3.0])[actions]
    tables = learn(actions, np.zeros_like(actions), reward, (1, 3), tau=tau)
    grid = np.linspace(0, 3, 30001)
    gap = np.array([0.0, 1.0, 3.0])[:, None] - grid
    weight = np.array([0.6, 0.3, 0.1])[:, None] * np.where(gap < 0, 1 - tau, tau)
    expectile = grid[np.argmin((weight * gap**2).sum(0))]
    assert tables["v"][0] == pytest.approx(expectile, abs=5e-3)
    if tau == 0.5:
        assert expectile == pytest.approx(0.6, abs=1e-4)  # the mean


@pytest.mark.slow
def test_a_chain_is_solved():
    """States 0..4 in a row, left or right; the reward is at the right end. The log is of a policy that goes left at 55 %."""
    rng, length = np.random.default_rng(1), 150
    episodes = []
    for _ in range(150):
        state, steps = 2, []
        for _ in range(length):
            action = int(rng.random() < 0.45)
            steps.append((action, state, float(state == 3 and action)))
            state = max(state - 1, 0) if not action else state + 1
            if state == 4:
                break
        episodes.append(steps + [(0, 0, np.nan)] * (length - len(steps)))
    log = np.array(episodes)
    tables = learn(log[..., 0].astype(int), log[..., 1].astype(int), log[..., 2], (5, 2), tau=0.98)
    greedy = tables["q"].min(axis=0)[:4].argmax(axis=1)
    np.testing.assert_array_equal(greedy, 1)
    shares = [np.mean(log[..., 0][(log[..., 1] == state) & ~np.isnan(log[..., 2])]) for state in range(4)]
    assert max(shares) < 0.5, "behavioural cloning goes left"
    # The fixed point: V is the expectile of two values, the share of each known from the log.
    q, value = np.zeros((4, 2)), np.zeros(5)
    for _ in range(200):
        for state in range(4):
            q[state] = 0.9 * value[max(state - 1, 0)], float(state == 3) + 0.9 * value[state + 1] * (state < 3)
            low, high = np.sort(q[state])
            weight = 0.98 * (shares[state] if q[state, 1] == high else 1 - shares[state])
            other = 0.02 * (1 - weight / 0.98)
            value[state] = (weight * high + other * low) / (weight + other)
    np.testing.assert_allclose(tables["q"].mean(axis=0)[:4, 1], q[:, 1], atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_shortest_paths_on_random_graphs(seed):
    """Walks at random over a graph are logged, a step costs 1 until the goal; the policy learnt takes shortest paths."""
    rng, nodes, length = np.random.default_rng(seed), 12, 10
    joined = rng.random((nodes, nodes)) < 0.25
    joined[np.arange(nodes), (np.arange(nodes) + 1) % nodes] = True  # a circle: the goal is reached from everywhere
    np.fill_diagonal(joined, False)
    steps = _distances(joined)
    log = np.full((600, length, 3), np.nan)
    log[..., :2] = 0
    for episode in log:
        node = int(rng.integers(1, nodes))
        for slot in episode:
            action = int(rng.choice(np.flatnonzero(joined[node])))
            slot[:] = action, node, -1.0
            if action == 0:
                break
            node = action
    tables = learn(log[..., 0].astype(int), log[..., 1].astype(int), log[..., 2], (nodes, nodes), tau=0.95, gamma=0.95)
    q = np.where(joined, tables["q"].min(axis=0), -np.inf)
    learnt, cloned = _lengths(q.argmax(axis=1), nodes), _lengths(_most_frequent(log, nodes), nodes)
    best = steps[1:]
    assert np.mean(learnt == best) >= 0.9
    assert np.mean(cloned == best) < 0.7


def _distances(joined):
    """Returns the number of steps from each node to node 0."""
    steps = np.where(np.arange(len(joined)) == 0, 0.0, np.inf)
    for _ in range(len(joined)):
        steps = np.minimum(steps, 1 + np.where(joined, steps[None], np.inf).min(axis=1))
    return steps


def _most_frequent(log, nodes):
    counts = np.zeros((nodes, nodes))
    taken = ~np.isnan(log[..., 2])
    np.add.at(counts, (log[..., 1][taken].astype(int), log[..., 0][taken].astype(int)), 1)
    return counts.argmax(axis=1)


def _lengths(policy, nodes):
    """Returns how many steps a policy needs from each node but 0; infinity where it goes round in circles."""
    found = []
    for node in range(1, nodes):
        count = 0
        while node and count <= nodes:
            node, count = int(policy[node]), count + 1
        found.append(np.inf if node else count)
    return np.array(found)
