"""The hook that adds advantages: against numpy written out, and rows of a table that are equal."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from smallr.core.sharding import make_mesh
from smallr.sampling.advantages import ROWS_MULTIPLE, add_advantages, distinct_rows, pack_heads
from smallr.sampling.programs import HookInputs

SLOTS, WIDTH, HIDDEN, VOCABULARY = 3, 8, 16, 400


def parameters(distinct: int, seed=0) -> tuple[np.ndarray, ...]:
    """Two heads whose tables have so many distinct rows."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(2, distinct, HIDDEN)).astype(np.float32)
    row = np.concatenate([np.arange(distinct), rng.integers(0, distinct, VOCABULARY - distinct)])
    up, bias = rng.normal(size=(WIDTH, 2, HIDDEN)), rng.normal(size=(2, HIDDEN))
    return up.astype(np.float32), bias.astype(np.float32), rows[:, rng.permutation(row)]


@pytest.mark.parametrize("distinct", [1, 50, VOCABULARY])
def test_logits_get_beta_times_the_smaller_value(distinct):
    up, bias, table = parameters(distinct)
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(SLOTS, VOCABULARY)).astype(np.float32)
    hidden, critic = rng.normal(size=(2, SLOTS, WIDTH)).astype(np.float32)
    heads = pack_heads(up, bias, table, beta=0.7, dtype="float32", mesh=make_mesh(1, 1, 1))
    for states in (None, critic):
        found = add_advantages(HookInputs(logits, hidden, states, jnp.zeros(SLOTS, int), (), heads))
        own = (hidden if states is None else states).astype(np.float64)
        q = [np.maximum(own @ up[:, h] + bias[h], 0) @ table[h].T for h in range(2)]
        np.testing.assert_allclose(found, logits + 0.7 * np.minimum(*q), atol=1e-4)


def test_equal_rows_are_held_once():
    table = parameters(50)[2]
    rows, row = distinct_rows(table)
    assert rows.shape == (2, ROWS_MULTIPLE, HIDDEN)
    assert set(row) == set(range(50))
    np.testing.assert_array_equal(rows[:, row], table)
    table[1, 7, 3] = np.nextafter(table[1, 7, 3], 9)  # the last bit of one number of one head
    assert set(distinct_rows(table)[1]) == set(range(51))


def test_a_table_of_distinct_rows_stays_as_it_is():
    table = parameters(VOCABULARY)[2]
    rows, row = distinct_rows(table)
    assert rows is table
    assert row is None
