"""Drawing tokens beside a float64 reference written from the rules, and their frequencies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smallr.sampling.choice import BLOCK, Rules, choose, kept
from tests.compiling import OPTIMISED

VOCAB = 2 * BLOCK + 83  # not a multiple of the blocks


def rules(rows: int, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0) -> Rules:
    key = np.random.default_rng(seed).integers(0, 2**32, (rows, 2), np.uint32)

    def full(value, dtype):
        return jnp.full(rows, value, dtype)

    return Rules(
        full(temperature, jnp.float32),
        full(top_k, jnp.int32),
        full(top_p, jnp.float32),
        full(min_p, jnp.float32),
        jnp.asarray(key),
    )


def reference(logits, temperature, top_k, top_p, min_p):
    """Probabilities in float64, by sorting."""
    x = np.asarray(logits, np.float64) / temperature
    probs = np.exp(x - x.max())
    order = np.argsort(-probs, kind="stable")
    keep = np.zeros(len(x), bool)
    keep[order[: top_k or None]] = True
    left = np.where(keep, probs, 0)
    share = np.cumsum(left[order]) / left.sum()
    if top_p < 1:
        keep[order[np.searchsorted(share, top_p) + 1 :]] = False
    keep &= probs >= min_p * probs.max()
    return np.where(keep, probs, 0) / probs[keep].sum()


CASES = [
    {},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10_000},
    {"top_p": 0.5},
    {"top_p": 0.93, "temperature": 1.7},
    {"top_p": 1e-6},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.7, "min_p": 0.05, "temperature": 0.8},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_that_may_be_drawn_are_those_of_the_reference(case):
    logits = np.random.default_rng(1).normal(0, 3, (5, VOCAB)).astype(np.float32)
    scaled = (logits - logits.max(-1, keepdims=True)) / case.get("temperature", 1.0)
    got = jax.jit(kept)(scaled, rules(5, **case))
    for row in range(5):
        want = reference(logits[row], **({"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | case)) > 0
        np.testing.assert_array_equal(got[row], want)


def test_equals_at_the_edge_are_all_kept():
    scaled = jnp.asarray([[0.0, -1.0, -1.0, -0.0, -5.0]])
    for case, want in (({"top_k": 3}, 4), ({"top_k": 1}, 2), ({"top_p": 0.9}, 4), ({"min_p": float(np.exp(-1))}, 4)):
        assert int(kept(scaled, rules(1, **case)).sum()) == want, case


@pytest.mark.slow
@pytest.mark.parametrize("case", [{}, {"temperature": 0.5, "top_p": 0.9}, {"top_k": 12, "min_p": 0.02}], ids=str)
def test_frequencies_are_the_probabilities(case):
    """Chi-square of 40,000 draws over tokens with at least 5 expected: within 4 standard deviations of its mean."""
    logits = np.random.default_rng(2).normal(0, 2, VOCAB).astype(np.float32)
    count, rows = 40_000, 500
    some = jax.jit(
        lambda index: choose(jnp.broadcast_to(logits, (rows, VOCAB)), rules(rows, **case), jnp.full(rows, index)),
        compiler_options=OPTIMISED,
    )
    drawn = np.concatenate([some(index) for index in range(count // rows)])
    probs = reference(logits, **({"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | case))
    seen = np.bincount(drawn, minlength=VOCAB)
    assert seen[probs == 0].sum() == 0
    often = probs * count >= 5
    expected = np.append(probs[often], probs[~often].sum()) * count
    got = np.append(seen[often], seen[~often].sum())
    expected, got = expected[expected > 0], got[expected > 0]
    chi = ((got - expected) ** 2 / expected).sum()
    freedom = len(expected) - 1
    assert abs(chi - freedom) < 4 * np.sqrt(2 * freedom)
    assert freedom > 5


def test_temperature_0_is_the_first_of_the_likeliest_and_rows_do_not_mix():
    logits = np.random.default_rng(3).normal(size=(4, VOCAB)).astype(np.float32)
    logits[1, [9, 300]] = 50.0
    mixed = rules(4)._replace(temperature=jnp.asarray([0.0, 0.0, 1.0, 1.0]), top_k=jnp.asarray([0, 5, 3, 0]))
    drawn = choose(jnp.asarray(logits), mixed, jnp.arange(4))
    assert int(drawn[0]) == logits[0].argmax()
    assert int(drawn[1]) == 9
    for row in range(2, 4):
        alone = jax.tree.map(lambda x, row=row: x[row : row + 1], mixed)
        assert int(choose(jnp.asarray(logits[row : row + 1]), alone, jnp.asarray([row]))[0]) == int(drawn[row])


def test_what_has_no_probability_is_never_drawn():
    logits = jnp.full((64, VOCAB), -jnp.inf).at[:, [0, VOCAB - 1]].set(jnp.asarray([0.0, -20.0]))
    drawn = np.concatenate([choose(logits, rules(64), jnp.full(64, index)) for index in range(4)])
    assert set(drawn.tolist()) <= {0, VOCAB - 1}
