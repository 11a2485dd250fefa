"""Computes attention by horizon with a mask over the whole square: the rule itself, for checks and for masked kernels.

Dimension letters: B rows, T tokens, H heads, K kv heads, D head_dim.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from smallr.models.tiles import MASKED


def visible_pairs(
    horizon: Int[Array, "B T"], positions: Int[Array, "B T"], window: int | Int[Array, ""] | None = None
) -> Bool[Array, "B T T"]:
    """Returns which queries (second axis) see which keys (third axis)."""
    index = jnp.arange(horizon.shape[1])
    query, key = index[:, None], index[None, :]
    visible = (key <= query) & (query < horizon[:, None, :])
    if window is not None:
        visible &= positions[:, :, None] - positions[:, None, :] < window
    return visible


def dense_attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    horizon: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    window: int | Int[Array, ""] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> Float[Array, "B T H D"]:
    """Computes what `smallr.models.attention.attention` defines, in float32 whatever the operands' dtype."""
    groups = q.shape[2] // k.shape[2]
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
    exact = lax.Precision.HIGHEST
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision=exact) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    visible = visible_pairs(horizon, positions, window)[:, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, MASKED), axis=-1)
    weights = jnp.where(visible.any(-1, keepdims=True), weights, 0.0)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision=exact)
