"""Computes attention of new tokens over the cached keys and values of earlier ones.

A slot of the cache is one sequence; the key at index i of a slot is that of its token i. So query q sees key k  ⇔
index[k] ≤ position[q], and, with a window, position[q] - index[k] < window.

What a query does not see adds exact zeros, so that a sequence is not changed by how far the cache reaches beyond it, but
for the order in which a compiler adds.

Dimension letters: S slots, P new tokens of each, C capacity, H heads, K kv heads, G = H / K, D head_dim, R = G × P.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from smallr.models.linear import precision
from smallr.models.tiles import MASKED

TILE = 64  # keys whose values are summed at once, fast on a CPU; capacities are multiples of it


class LayerCache(NamedTuple):
    """Holds keys after the rotary embedding, and values, of one layer.

    Keys have the capacity as their minor axis: on a CPU the product with few queries is three times as fast so.
    """

    keys: Float[Array, "S K D C"]
    values: Float[Array, "S K C D"]

    @property
    def capacity(self) -> int:
        """Returns tokens of a slot."""
        return self.values.shape[2]


def write(
    cache: LayerCache,
    k: Float[Array, "R P K D"],
    v: Float[Array, "R P K D"],
    index: Int[Array, "R P"],
    slots: Int[Array, "R"] | None = None,
) -> LayerCache:
    """Puts the keys and values of new tokens at their indices; a slot or an index beyond the last is dropped.

    Args:
      cache: donated by the program, it is written in place.
      k: keys after the rotary embedding.
      v: values.
      index: of each token in its slot.
      slots: of each row; None where the rows are the slots.
    """
    slot = (jnp.arange(len(index)) if slots is None else slots)[:, None]
    keys = cache.keys.at[slot, :, :, index].set(k.astype(cache.keys.dtype), mode="drop")
    values = cache.values.at[slot, :, index].set(v.astype(cache.values.dtype), mode="drop")
    return LayerCache(keys, values)


def rows_of(cache: LayerCache, slots: Int[Array, "R"]) -> LayerCache:
    """Returns these slots; one beyond the last gives the last."""
    return jax.tree.map(lambda x: x.at[slots].get(mode="clip"), cache)


def attend(
    q: Float[Array, "S P H D"],
    cache: LayerCache,
    positions: Int[Array, "S P"],
    *,
    window: int | Int[Array, ""] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> Float[Array, "S P H D"]:
    """Computes softmax(scale q kᵀ) v over the cached keys up to each query's position; in q's dtype.

    Args:
      q: queries after the rotary embedding; their own keys and values are already in the cache.
      cache: finite wherever it was never written.
      positions: of the queries in their sequences.
      window: as in `smallr.models.attention.attention`.
      softcap: likewise.
      scale: likewise.
    """
    slots, new, heads, dim = q.shape
    kv_heads, capacity = cache.values.shape[1:3]
    groups, tiles = heads // kv_heads, capacity // TILE
    rows = q.reshape(slots, new, kv_heads, groups, dim).transpose(0, 2, 3, 1, 4).reshape(slots, kv_heads, -1, dim)
    scores = _dot("skrd,skdc->skrc", rows, cache.keys) * (dim**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    behind = positions[:, :, None] - jnp.arange(capacity)
    visible = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    by_group = scores.reshape(slots, kv_heads, groups, new, capacity)
    scores = jnp.where(visible[:, None, None], by_group, MASKED).reshape(scores.shape)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    tiled = weights.reshape(*weights.shape[:3], tiles, TILE)
    total = tiled.sum((3, 4))[..., None]
    tiled = tiled.transpose(0, 1, 3, 2, 4).astype(q.dtype)
    values = cache.values.reshape(slots, kv_heads, tiles, TILE, dim)
    mixed = _dot("sknrc,skncd->sknrd", tiled, values).sum(2) / total
    mixed = mixed.reshape(slots, kv_heads, groups, new, dim).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(q.shape).astype(q.dtype)


def _dot(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, precision=precision(a.dtype), preferred_element_type=jnp.float32)
