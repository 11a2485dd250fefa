"""Computes attention of rows whose tokens are split over the mesh axis `context`; `smallr.models.attention` defines the result.

A device has the queries, keys and values of one stretch of tokens. It gathers the keys and values of the whole row, which are
few with grouped queries (arXiv 2407.21783, section 3.3.2, does the same), and computes the tiles of its own queries that
hold a visible pair: a key that its horizon hides from all of them costs nothing but its gather. Gradients of keys and values
are added up over the devices that saw them, each device getting those of its own stretch.

Later queries see more keys. So each stretch is cut in two halves, and for attention device c takes the halves c and 2 C - 1 - c
of the row's 2 C: of one causal row every device then computes the same number of pairs. Of a row of many examples, each
half costs what its own examples cost, so the balance is that of the packing.

Dimension letters: B rows, T tokens, t = T / C of a device, C devices; H heads, K kv heads, D head_dim.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

from smallr.core.sharding import CONTEXT, context_size, split_axes
from smallr.models import attention_xla
from smallr.models.attention_xla import Tiling


def forward(q, k, v, horizon, positions, window, **options):
    """Returns what `attention_xla.forward` does, each array split over `context` as its tokens are."""
    specs, out = _specs(q, k, 1)
    return jax.shard_map(functools.partial(_forward, **options), in_specs=specs, out_specs=(out, out), check_vma=False)(
        q, k, v, horizon, positions, window
    )


def backward(q, k, v, horizon, positions, window, dout, lse, delta, **options):
    """Returns what `attention_xla.backward` does, likewise."""
    specs, out = _specs(q, k, 4)
    run = functools.partial(_backward, **options)
    return jax.shard_map(run, in_specs=specs, out_specs=(out, out, out), check_vma=False)(
        q, k, v, horizon, positions, window, dout, lse, delta
    )


def _specs(q: Array, k: Array, count: int) -> tuple[tuple[PartitionSpec, ...], PartitionSpec]:
    """Returns the specs of the arguments and of a result."""
    rows = split_axes("batch", q.shape[0]) or None
    tokens = PartitionSpec(rows, CONTEXT, split_axes("kv_heads", k.shape[2]) or None)
    whole = PartitionSpec(rows)
    return (tokens, tokens, tokens, whole, whole, PartitionSpec(), *(tokens,) * (count - 1)), tokens


def _forward(q, k, v, horizon, positions, window, *, tiling: Tiling, softcap, scale):
    tiling, tiles = _own_tiles(q.shape[1], tiling)
    gathered = _gather(k), _gather(v)
    options = {"tiling": tiling, "softcap": softcap, "scale": scale, "tiles": tiles}
    results = attention_xla.forward(_to_halves(q), *gathered, horizon, positions, window, **options)
    return tuple(_from_halves(x) for x in results)


def _backward(q, k, v, horizon, positions, window, dout, lse, delta, *, tiling: Tiling, softcap, scale):
    tiling, tiles = _own_tiles(q.shape[1], tiling)
    options = {"tiling": tiling, "softcap": softcap, "scale": scale, "tiles": tiles}
    dq, dk, dv = attention_xla.backward(
        _to_halves(q),
        _gather(k),
        _gather(v),
        horizon,
        positions,
        window,
        *(_to_halves(x) for x in (dout, lse, delta)),
        **options,
    )
    add_up = functools.partial(lax.psum_scatter, axis_name=CONTEXT, scatter_dimension=1, tiled=True)
    return _from_halves(dq), add_up(dk).astype(k.dtype), add_up(dv).astype(v.dtype)


def _gather(x: Shaped[Array, "B t K D"]) -> Shaped[Array, "B T K D"]:
    return lax.all_gather(x, CONTEXT, axis=1, tiled=True)


def _own_tiles(tokens: int, tiling: Tiling) -> tuple[Tiling, Int[Array, "tiles"]]:
    """Returns tiles that halves of `tokens` are whole numbers of, and which tiles of the row this device's two halves are."""
    half, devices, own = tokens // 2, context_size(), lax.axis_index(CONTEXT)
    queries = max(size for size in range(1, min(tiling.queries, half) + 1) if half % size == 0)
    keys = max(size for size in range(1, min(tiling.keys, queries) + 1) if queries % size == 0)
    each = half // queries
    starts = jnp.stack([own, 2 * devices - 1 - own]) * each
    return Tiling(queries, keys, tiling.most), (starts[:, None] + jnp.arange(each)).reshape(-1)


def _taker(half: int, devices: int) -> int:
    """Returns the device that computes a half of a stretch, of the row's 2 C."""
    return half if half < devices else 2 * devices - 1 - half


def _exchange(devices: int) -> list[list[tuple[int, int]]]:
    """Returns who sends its first half to whom, and who its second: both are permutations of the devices."""
    return [[(own, _taker(2 * own + i, devices)) for own in range(devices)] for i in range(2)]


def _to_halves(x: Float[Array, "B t *rest"]) -> Float[Array, "B t *rest"]:
    """Exchanges the halves of this device's stretch for the two that it computes, the earlier one first."""
    first, second = jnp.split(x, 2, axis=1)
    to_first, to_second = _exchange(context_size())
    first, second = lax.ppermute(first, CONTEXT, to_first), lax.ppermute(second, CONTEXT, to_second)
    return _ordered(first, second)


def _from_halves(x: Float[Array, "B t *rest"]) -> Float[Array, "B t *rest"]:
    """Inverts `_to_halves`."""
    first, second = _split_ordered(x)
    to_first, to_second = ([(there, here) for here, there in pairs] for pairs in _exchange(context_size()))
    return jnp.concatenate([lax.ppermute(first, CONTEXT, to_first), lax.ppermute(second, CONTEXT, to_second)], axis=1)


def _ordered(first: Array, second: Array) -> Array:
    """Puts the half with the earlier tokens first: half c, which is a first half of its stretch if c is even."""
    even = lax.axis_index(CONTEXT) % 2 == 0
    return jnp.concatenate([jnp.where(even, first, second), jnp.where(even, second, first)], axis=1)


def _split_ordered(x: Array) -> tuple[Array, Array]:
    """Inverts `_ordered`."""
    early, late = jnp.split(x, 2, axis=1)
    even = lax.axis_index(CONTEXT) % 2 == 0
    return jnp.where(even, early, late), jnp.where(even, late, early)
