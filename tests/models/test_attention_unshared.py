"""Unshared prompts against the dense rule, with a plain causal attention in the middle: values and gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smallr.models.attention_unshared import room, unshare, unshared_attention
from tests.models.helpers import packed_rule, whole
from tests.models.test_attention import _dense_jax, _qkv

LENGTH = 60
SEQUENCES = 12


def plain(q, k, v, where):
    """Causal attention within each sequence. Positions without a token are NaN, as a kernel may leave them."""
    same = (where.sequence[:, :, None] == where.sequence[:, None, :]) & (where.sequence >= 0)[:, :, None]
    index = jnp.arange(q.shape[1])
    visible = (same & (index[:, None] >= index))[:, None]
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") * q.shape[-1] ** -0.5
    weights = jnp.where(visible, jax.nn.softmax(jnp.where(visible, scores, -1e30), axis=-1), 0)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision="highest")
    return jnp.where((where.sequence >= 0)[..., None, None], out, jnp.nan)


@functools.cache
def _programs():
    def outcome(attend, q, k, v, cotangent):
        out, pull = jax.vjp(attend, q, k, v)
        return out, *pull(cotangent)

    def unshared(q, k, v, cotangent, horizon, positions):
        return outcome(lambda *x: unshared_attention(plain, *x, horizon, SEQUENCES), q, k, v, cotangent)

    def dense(q, k, v, cotangent, horizon, positions):
        return outcome(lambda *x: _dense_jax(*x, horizon, positions, None, None), q, k, v, cotangent)

    return jax.jit(unshared), jax.jit(dense)


# An example: a prefix with one or two completions, lengths of each.
_EXAMPLES = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3).map(tuple), max_size=5)


def _fitting(row: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    kept, used = [], 0
    for each in row:
        if used + sum(each) <= LENGTH:
            kept.append(each)
            used += sum(each)
    return kept


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(_EXAMPLES, min_size=2, max_size=2))
@example(rows=[[(30, 10, 17)], [(60,)]])
@example(rows=[[(1, 1, 1)] * 5, []])
@example(rows=[[(58, 1, 1)], [(1, 29, 30)]])
def test_any_packing_equals_the_dense_rule(rows):
    positions, horizon = packed_rule([_fitting(row) for row in rows], LENGTH)
    arrays = (*_qkv(4, 2, 2, LENGTH), horizon, positions)
    unshared, dense = _programs()
    for name, ours, theirs in zip(("out", "dq", "dk", "dv"), unshared(*arrays), dense(*arrays), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(np.abs(theirs).max(), 1.0), err_msg=name)


unshared_rows = jax.jit(unshare, static_argnums=(1, 2))


def test_sequences_are_the_prompt_with_each_completion():
    _, horizon = packed_rule([[(3, 2, 4), (2, 1)]], 14)
    where = unshared_rows(horizon, 4, 24)
    assert where.source[0, :15].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 8, 9, 10, 11]
    assert where.length[0].tolist() == [5, 7, 3, 0]
    assert where.start[0, :3].tolist() == [0, 5, 12]
    assert where.sequence[0].tolist() == [0] * 5 + [1] * 7 + [2] * 3 + [-1] * 9
    assert where.place[0, 1].tolist() == [1, 6]
    assert where.place[0, 3].tolist() == [3, 24]
    assert bool(where.fits[0])


@pytest.mark.parametrize(
    ("layout", "sequences"),
    [([[(4, 2, 2, 2)]], 8), ([[(4, 2, 2), (3, 2, 2)]], 3)],
    ids=["three completions", "no room"],
)
def test_a_row_that_does_not_fit_is_seen(layout, sequences):
    """Its outputs are NaN, those of the rows beside it are right."""
    positions, horizon = packed_rule([*layout, [(5, 3, 3)]], 24)
    q, k, v, _ = _qkv(2, 2, 2, 24)
    out = jax.jit(lambda *x: unshared_attention(plain, *x, horizon, sequences))(q, k, v)
    assert np.isnan(out[0]).all()
    np.testing.assert_allclose(out[1], _dense_jax(q, k, v, horizon, positions, None, None)[1], atol=1e-5)


def test_a_row_that_is_no_tree_is_seen():
    _, horizon = whole(8)
    crossed = horizon.at[0, 1].set(4).at[0, 2].set(6)  # key 2 stays visible when key 1, before it, does not
    assert bool(unshared_rows(horizon, 4, room(8)).fits[0])
    assert not bool(unshared_rows(crossed, 4, room(8)).fits[0])
