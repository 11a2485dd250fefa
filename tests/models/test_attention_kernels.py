"""All implementations with small tiles against the dense mask, kernels interpreted on the CPU: values and gradients.

On a GPU or TPU the kernel of that device runs for real.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smallr.models import attention_gpu, attention_tpu, attention_xla
from smallr.models.attention import attention
from tests.models.helpers import packed_rule
from tests.models.test_attention import _dense_jax, _qkv

LENGTH = 75  # five tiles of 16, the last one partly filled
# Rows of examples (prefix, completion...): shared prefixes over several tiles, padding, an empty row.
LAYOUT = [[(30, 10, 17), (9, 4, 4)], [(1, 1), (40, 16, 7)], []]
NOWHERE = 10_000  # a window that bounds nothing

IMPLEMENTATIONS = ("xla", "tpu", "gpu")


@pytest.fixture(autouse=True, scope="module")
def _small_tiles():
    with pytest.MonkeyPatch.context() as patch:
        if jax.default_backend() == "cpu":
            patch.setattr(attention_xla, "CPU", attention_xla.Tiling(32, 16, 2))
            patch.setattr(attention_tpu, "TILE", 16)
            patch.setattr(attention_tpu, "LANES", 16)
            patch.setattr(attention_gpu, "LARGEST", {2: 16, 4: 16})
        yield


@functools.cache
def _program(impl: str, windowed: bool, softcap: float | None = None):
    """(q, k, v, cotangent, horizon, positions, window) to the output and the gradients of q, k and v, jitted."""

    def outcome(q, k, v, cotangent, horizon, positions, window):
        window = window if windowed else None
        if impl == "dense":
            q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
            out, vjp = jax.vjp(lambda *x: _dense_jax(*x, horizon, positions, window, softcap), q, k, v)
        else:
            out, vjp = jax.vjp(lambda *x: attention(*x, horizon, positions, window, softcap, impl=impl), q, k, v)
        return out, *vjp(cotangent.astype(out.dtype))

    return jax.jit(outcome)


def _assert_equal(impl, arrays, layout, window=None, softcap=None, tolerance=1e-5):
    positions, horizon = packed_rule(layout, LENGTH)
    arguments = *arrays, horizon, positions, jnp.int32(window or NOWHERE)
    ours = _program(impl, window is not None, softcap)(*arguments)
    theirs = _program("dense", window is not None, softcap)(*arguments)
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, theirs, strict=True):
        assert a.dtype == arrays[0].dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1.0), err_msg=name)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_grouped_heads_share_their_keys(impl):
    _assert_equal(impl, _qkv(4, 2, len(LAYOUT), LENGTH), LAYOUT)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_windows_and_softcaps(impl):
    """Of one query, of about a tile, and wider than the row; traced, so that layers can be scanned."""
    arrays = _qkv(2, 2, len(LAYOUT), LENGTH, dim=24)
    for window in (1, 17, 200):
        _assert_equal(impl, arrays, LAYOUT, window, softcap=3.0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_bfloat16_stays_within_its_rounding(impl):
    _assert_equal(impl, _qkv(4, 2, len(LAYOUT), LENGTH, dtype="bfloat16"), LAYOUT, tolerance=2e-2)


# An example: a prefix and its completions, lengths of each.
_EXAMPLES = st.lists(st.lists(st.integers(1, 36), min_size=2, max_size=3).map(tuple), min_size=0, max_size=6)


def _fitting(row: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    kept, used = [], 0
    for example_ in row:
        if used + sum(example_) <= LENGTH:
            kept.append(example_)
            used += sum(example_)
    return kept


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(_EXAMPLES, min_size=3, max_size=3), window=st.one_of(st.none(), st.integers(1, 40)))
@example(rows=[[(16, 16)], [(1, 15), (15, 1)], [(32, 16, 16)]], window=None)  # ends on the edges of tiles
@example(rows=[[(16, 17)], [(15, 2), (16, 15)], [(33, 16, 15)]], window=None)  # one token past them, or before
@example(rows=[[(75,)], [(1, 1)] * 6, []], window=16)
def test_any_packing(impl, rows, window):
    rows = [_fitting(row) for row in rows]
    if window is None:
        _assert_equal(impl, _qkv(4, 2, 3, LENGTH), rows)
    else:
        _assert_equal(impl, _qkv(2, 2, 3, LENGTH, dim=24), rows, window, softcap=3.0)
