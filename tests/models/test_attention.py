"""Attention against a dense mask written from the rule, over packed, shared, padded and windowed rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smallr.models import attention_xla
from smallr.models.attention import attention
from smallr.models.attention_xla import Tiling
from smallr.models.decoder import NO_WINDOW
from tests.compiling import USUAL, narrow
from tests.models.helpers import dense_attention, packed_rule, whole

# Rows of examples (prefix, completion...): plain, packed, shared prefixes, padding at the end, an empty row.
LAYOUT = [[(60, 20, 30), (25, 10), (9, 4, 4)], [(1, 1), (128, 30, 7)], []]
LENGTH = 181  # neither a multiple of a tile nor of anything else


@pytest.fixture(scope="module", autouse=True)
def _usual_tiles():
    narrow(USUAL)
    yield
    narrow()


pytestmark = pytest.mark.usefixtures("cpu_mesh")


compiled = jax.jit(attention, static_argnames=("window", "softcap"))


def _qkv(heads: int, kv_heads: int, batch: int, length: int, dim: int = 8, dtype: str = "float32"):
    keys = jax.random.split(jax.random.key(heads * length), 4)
    shapes = [(batch, length, n, dim) for n in (heads, kv_heads, kv_heads, heads)]
    return [2 * jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


def _dense_jax(q, k, v, horizon, positions, window, softcap):
    """The same rule in one differentiable expression, for gradients."""
    length, groups = q.shape[1], q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, groups, 2), jnp.repeat(v, groups, 2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") / np.sqrt(q.shape[-1])
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    index = jnp.arange(length)
    mask = (index[None, None, :] <= index[None, :, None]) & (index[None, :, None] < horizon[:, None, :])
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None, :] < window
    seen = mask.any(-1)[:, None, :, None]
    weights = jnp.where(seen, jax.nn.softmax(jnp.where(mask[:, None], scores, -1e9), axis=-1), 0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision="highest")


@pytest.mark.parametrize("window", [None, 1, 17])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (3, 3)])
def test_values_are_those_of_the_dense_mask(heads, kv_heads, window, softcap):
    q, k, v, _ = _qkv(heads, kv_heads, len(LAYOUT), LENGTH)
    positions, horizon = packed_rule(LAYOUT, LENGTH)
    got = compiled(q, k, v, horizon, positions, window, softcap)
    want = dense_attention(q, k, v, horizon, positions, window, softcap)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (17, None), (None, 3.0), (17, 3.0)])
def test_gradients_are_those_of_the_dense_mask(window, softcap):
    q, k, v, cotangent = _qkv(6, 2, len(LAYOUT), LENGTH)
    positions, horizon = packed_rule(LAYOUT, LENGTH)
    ours = jax.jit(
        jax.grad(lambda *x: jnp.sum(attention(*x, horizon, positions, window, softcap) * cotangent), (0, 1, 2))
    )
    dense = jax.jit(
        jax.grad(lambda *x: jnp.sum(_dense_jax(*x, horizon, positions, window, softcap) * cotangent), (0, 1, 2))
    )
    for got, want in zip(ours(q, k, v), dense(q, k, v), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("length", [1, 2, 127, 128, 129, 300])
def test_any_length(length):
    q, k, v, _ = _qkv(2, 1, 1, length)
    positions, horizon = whole(length)
    np.testing.assert_allclose(
        compiled(q, k, v, horizon, positions), dense_attention(q, k, v, horizon, positions), atol=1e-5
    )


def _values_and_gradients() -> tuple[jax.Array, ...]:
    """Compiles anew at each call, by the tiling of the time."""
    q, k, v, cotangent = _qkv(6, 2, len(LAYOUT), LENGTH)
    positions, horizon = packed_rule(LAYOUT, LENGTH)

    def run(q, k, v):
        out, pull = jax.vjp(lambda *x: attention(*x, horizon, positions, 17), q, k, v)
        return out, *pull(cotangent)

    return jax.jit(run)(q, k, v)


@pytest.fixture(scope="module")
def usual() -> tuple[jax.Array, ...]:
    return _values_and_gradients()


@pytest.mark.slow
@pytest.mark.parametrize("tiling", [(26, 13, 2), (39, 13, 50), (64, 64, 1), (512, 256, 8)])
def test_the_tiling_does_not_matter(monkeypatch, tiling, usual):
    """Tiles that do and do not divide the row; lists of key tiles taken one by one, in several parts, at once."""
    monkeypatch.setattr(attention_xla, "CPU", Tiling(*tiling))
    for got, want in zip(_values_and_gradients(), usual, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_an_example_that_reaches_one_query_into_a_tile():
    q, k, v, _ = _qkv(2, 1, 1, LENGTH)
    positions, horizon = packed_rule([[(100, 29), (40, 12)]], LENGTH)
    assert int(horizon.reshape(-1)[:128].max()) == 129
    np.testing.assert_allclose(
        compiled(q, k, v, horizon, positions), dense_attention(q, k, v, horizon, positions), atol=1e-5
    )


def _lists(horizon, positions, window=None, queries=128):
    """The key tiles of 128 tokens of each query tile."""
    make = jax.jit(attention_xla.make_rule, static_argnums=(2, 3))
    rule = make(horizon, positions, window, Tiling(queries, 128, 2))
    return [[int(tile) for tile in tiles[:count]] for tiles, count in zip(rule.lists, rule.counts, strict=True)]


@pytest.mark.slow
def test_only_tiles_with_a_visible_pair_are_computed():
    """Three examples of two tiles each: 3 tiles each of 21 under the diagonal; the rejected completion skips the chosen."""
    positions, horizon = packed_rule([[(128, 128)] * 3], 768)
    assert _lists(horizon, positions) == [[0], [0, 1], [2], [2, 3], [4], [4, 5]]
    positions, horizon = packed_rule([[(128, 256, 256)]], 640)
    assert _lists(horizon, positions) == [[0], [0, 1], [0, 1, 2], [0, 3], [0, 3, 4]]
    assert _lists(horizon, positions, queries=256) == [[0, 1], [0, 1, 2, 3], [0, 3, 4]]
    positions, horizon = whole(1024)
    assert _lists(horizon, positions) == [list(range(i + 1)) for i in range(8)]
    assert _lists(horizon, positions, 129) == [[max(i - 1, 0), i][i == 0 :] for i in range(8)]  # itself, the one before


def test_parts_of_a_list_are_about_as_wide_as_each_other():
    positions, horizon = whole(1024)
    rule = attention_xla.make_rule(horizon, positions, None, Tiling(128, 64, 5))
    assert rule.counts.tolist() == [2, 4, 6, 8, 10, 12, 14, 16]
    assert rule.parts.tolist() == [1, 1, 2, 2, 2, 3, 3, 4]
    assert rule.width.tolist() == [2, 4, 3, 4, 5, 4, 5, 4]


@pytest.mark.slow
def test_unseen_queries_give_zeros_and_no_gradient():
    q, k, v, _ = _qkv(4, 2, 2, 40)
    positions, horizon = packed_rule([[(5, 6)], []], 40)

    def loss(q, k, v):
        return jnp.sum(attention(q, k, v, horizon, positions) ** 2)

    out = compiled(q, k, v, horizon, positions)
    assert not np.any(out[0, 11:]), "padding must give zeros"
    assert not np.any(out[1]), "a row of padding must give zeros"
    for grad in jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v):
        assert np.isfinite(grad).all()
        assert not np.any(grad[0, 11:])
        assert not np.any(grad[1])
        assert np.any(grad[0, :11])


def test_large_scores_stay_finite():
    q, k, v, _ = _qkv(2, 2, 1, 30)
    positions, horizon = whole(30)
    assert np.abs(np.einsum("bqhd,bkhd->bhqk", 8 * q, 8 * k)).max() > 88 * np.sqrt(8)  # exp would overflow
    got = compiled(8 * q, 8 * k, v, horizon, positions)
    np.testing.assert_allclose(got, dense_attention(8 * q, 8 * k, v, horizon, positions), atol=1e-3)


@pytest.mark.slow
def test_bfloat16_is_within_its_rounding():
    q, k, v, cotangent = _qkv(6, 2, len(LAYOUT), LENGTH, dtype="bfloat16")
    positions, horizon = packed_rule(LAYOUT, LENGTH)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]

    def loss(q, k, v):
        return jnp.sum(attention(q, k, v, horizon, positions).astype(jnp.float32) * cotangent.astype(jnp.float32))

    out = compiled(q, k, v, horizon, positions)
    assert out.dtype == jnp.bfloat16
    exact = dense_attention(*wide, horizon, positions)
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=2**-7 * np.abs(exact).max())
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
    for got, want in zip(gradients(q, k, v), gradients(*wide), strict=True):
        assert got.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(got, np.float32) - want) / np.linalg.norm(want)
        assert error < 0.01, error


def test_bad_arguments_are_named():
    q, k, v, _ = _qkv(4, 3, 1, 4)
    positions, horizon = whole(4)
    with pytest.raises(ValueError, match="4 heads are not a multiple of 3 kv heads"):
        attention(q, k, v, horizon, positions)
    with pytest.raises(
        ValueError, match="the implementation 'flash' must be one of: auto, xla, tpu, gpu, cudnn, cudnn_packed, splash"
    ):
        attention(q, q, q, horizon, positions, impl="flash")


def test_windows_of_scanned_layers_and_a_scale_of_its_own():
    """Traced windows give what static ones do, over several tiles and in the gradients; the largest bounds nothing."""
    q, k, v, cotangent = _qkv(6, 2, len(LAYOUT), LENGTH)
    positions, horizon = packed_rule(LAYOUT, LENGTH)
    windows = [9, None, 40]

    def of(q, window):
        return jnp.sum(attention(q, k, v, horizon, positions, window, scale=0.7) * cotangent)

    traced = jnp.asarray([NO_WINDOW if window is None else window for window in windows])
    _, got = jax.jit(lambda: jax.lax.scan(lambda _, window: (None, jax.grad(of)(q, window)), None, traced))()
    for gradient, window in zip(got, windows, strict=True):
        scaled = q * 0.7 * np.sqrt(q.shape[-1])
        dense = jax.jit(
            jax.grad(
                lambda q, window=window: jnp.sum(_dense_jax(q, k, v, horizon, positions, window, None) * cotangent)
            )
        )
        want = dense(scaled) * 0.7 * np.sqrt(q.shape[-1])
        np.testing.assert_allclose(gradient, want, atol=2e-5 * np.abs(want).max())
