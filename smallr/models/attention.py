"""Attention behind one function, with the horizon as its whole rule.

Query q sees key k  ⇔  k ≤ q < horizon[k]  (indices into the row), and, with a window,
positions[q] - positions[k] < window. Packing, shared prompts, plain rows and padding are all this rule.

The `xla` implementation walks over static blocks of queries, each against the keys up to its own end, and
keeps the log-sum-exp instead of the probabilities for the backward pass (FlashAttention, arXiv 2205.14135,
algorithms 1 and 4, without the tiling over keys). So half of the square is never computed and no [T, T] is
held for more than a block of queries.

Dimension letters: B rows, T tokens, H heads, K kv heads, G = H / K queries per kv head, D head_dim;
t queries of a block, s keys that it can see.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from smallr.models.linear import precision, transpose_minor

QUERY_BLOCK = 256
MASKED = -1e30  # finite, so that a row without a visible key gives zeros and no NaN


def attention(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    horizon: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    window: int | None = None,
    softcap: float | None = None,
    impl: str = "xla",
) -> Float[Array, "B T H D"]:
    """softmax(q kᵀ / √D) v over the visible keys; scores, softmax and sums in float32.

    Args:
      q: queries after the rotary embedding; their H heads are K groups.
      k: keys after the rotary embedding, of q's dtype, not repeated for the heads of a group.
      v: values, likewise.
      horizon: first query index that no longer sees this key; 0 for padding.
      positions: position within the example; read only with a window.
      window: None, or a query sees positions at most window - 1 back.
      softcap: None, or scores become softcap * tanh(score / softcap) (Gemma 2, arXiv 2408.00118, section 2).
      impl: "xla", which runs on every backend.

    Returns:
      The mixed values in q's dtype. A query without any visible key gives zeros, and takes and gives no gradient.

    Raises:
      ValueError: an unknown `impl`, or heads that are not a multiple of the kv heads.
    """
    if impl != "xla":
        raise ValueError(f"attention: unknown implementation {impl!r}; known: xla")
    heads, kv_heads = q.shape[2], k.shape[2]
    if heads % kv_heads:
        raise ValueError(f"attention: {heads} heads are not a multiple of {kv_heads} kv heads")
    batch, length, _, dim = q.shape
    grouped = q.reshape(batch, length, kv_heads, heads // kv_heads, dim).transpose(0, 2, 3, 1, 4)
    out = _attend(grouped, k.swapaxes(1, 2), v.swapaxes(1, 2), horizon, positions, window, softcap)
    return out.transpose(0, 3, 1, 2, 4).reshape(q.shape)


def visible(
    horizon: Int[Array, "B s"], positions: Int[Array, "B T"], start: int, stop: int, window: int | None
) -> Bool[Array, "B t s"]:
    """Which of the keys 0..stop the queries start..stop see."""
    query = jnp.arange(start, stop)[None, :, None]
    key = jnp.arange(stop)[None, None, :]
    mask = (key <= query) & (query < horizon[:, None, :stop])
    if window is not None:
        mask &= positions[:, start:stop, None] - positions[:, None, :stop] < window
    return mask


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, horizon, positions, window, softcap):
    return _attend_forward(q, k, v, horizon, positions, window, softcap)[0]


def _attend_forward(q, k, v, horizon, positions, window, softcap):
    """q [B K G T D], k and v [B K T D] -> out [B K G T D] and, for the backward pass, lse [B K G T] float32."""
    outs, lses = [], []
    for start, stop in _blocks(q.shape[3]):
        mask = visible(horizon, positions, start, stop, window)[:, None, None]
        scores = _dot("bkgtd,bksd->bkgts", q[:, :, :, start:stop], k[:, :, :stop])
        scores = jnp.where(mask, _scale(scores, q.shape[-1], softcap), MASKED)
        # Half of MASKED: a row of masked scores then has exp(MASKED / 2) = 0 everywhere instead of ones.
        top = jnp.maximum(scores.max(-1, keepdims=True), MASKED / 2)
        weights = jnp.exp(scores - top)
        total = jnp.maximum(weights.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
        mixed = _dot("bkgts,bksd->bkgtd", weights.astype(v.dtype), v[:, :, :stop])
        outs.append((mixed / total).astype(q.dtype))
        lses.append((top + jnp.log(total))[..., 0])
    out = checkpoint_name(jnp.concatenate(outs, axis=3), "attention_out")
    lse = checkpoint_name(jnp.concatenate(lses, axis=3), "attention_lse")
    return out, (q, k, v, horizon, positions, out, lse)


def _attend_backward(window, softcap, residuals, dout):
    """Gradients from recomputed scores; keys are the leading axis here, so that dk and dv are plain products."""
    q, k, v, horizon, positions, out, lse = residuals
    dk = jnp.zeros(k.shape, jnp.float32)
    dv = jnp.zeros(v.shape, jnp.float32)
    dqs = []
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    for start, stop in _blocks(q.shape[3]):
        block = (slice(None), slice(None), slice(None), slice(start, stop))
        mask = visible(horizon, positions, start, stop, window).swapaxes(1, 2)[:, None, :, None]
        keys, values = k[:, :, :stop], v[:, :, :stop]
        raw = _scale(_dot("bksd,bkgtd->bksgt", keys, q[block]), q.shape[-1], softcap)
        weights = jnp.exp(jnp.where(mask, raw, MASKED) - lse[block][:, :, None])
        dweights = _dot("bksd,bkgtd->bksgt", values, dout[block])
        dscores = weights * (dweights - delta[block][:, :, None]) * q.shape[-1] ** -0.5
        if softcap is not None:
            dscores *= 1 - (raw / softcap) ** 2
        dscores = dscores.astype(q.dtype)
        dv = dv.at[:, :, :stop].add(_dot("bksgt,bkgtd->bksd", weights.astype(q.dtype), dout[block]))
        dk = dk.at[:, :, :stop].add(_dot("bksgt,bkgtd->bksd", dscores, q[block]))
        shape = dscores.shape
        columns = transpose_minor(dscores.reshape(*shape[:3], -1)).reshape(*shape[:2], *shape[3:], shape[2])
        dqs.append(_dot("bkgts,bksd->bkgtd", columns, keys).astype(q.dtype))
    return jnp.concatenate(dqs, axis=3), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERY_BLOCK, length)) for start in range(0, length, QUERY_BLOCK)]


def _dot(equation, a, b):
    return jnp.einsum(equation, a, b, precision=precision(a.dtype), preferred_element_type=jnp.float32)


def _scale(scores, dim, softcap):
    scores = scores * dim**-0.5
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)
