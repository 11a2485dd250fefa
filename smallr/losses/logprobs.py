"""Log-probs of scored tokens without ever holding [B, T, V] logits.

Cost model, for B*N scored tokens, width D, vocabulary V: 2 B N V D FLOPs forward and 6 B N V D backward
(the logits are computed again, then two products), against 2 and 4 for a dense head that keeps its
logits. Peak extra memory: B*chunk*V floats for the logits of one chunk and as many for their gradient,
instead of B*N*V.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class TokenScores(NamedTuple):
    """What the head says of each scored token, float32 [B, N].

    Attributes:
      logps: log p(target).
      collision: log sum_v p(v)^2, the expected probability of a token drawn from p; a constant, or None if not asked.
    """

    logps: Float[Array, "B N"]
    collision: Float[Array, "B N"] | None = None


def token_logps(
    hidden: Float[Array, "B N D"],
    head: Float[Array, "V D"],
    target: Int[Array, "B N"],
    *,
    chunk: int = 128,
    softcap: float | None = None,
) -> Float[Array, "B N"]:
    """log p(target) under softmax(hidden @ head.T): `token_scores` without more."""
    return token_scores(hidden, head, target, chunk=chunk, softcap=softcap).logps


def token_scores(
    hidden: Float[Array, "B N D"],
    head: Float[Array, "V D"],
    target: Int[Array, "B N"],
    *,
    chunk: int = 128,
    softcap: float | None = None,
    collision: bool = False,
) -> TokenScores:
    """log p(target) under softmax(hidden @ head.T), in float32, computed `chunk` slots at a time.

    The products run in the dtype of `hidden` with float32 accumulation; log-sum-exp, soft-cap and the
    gradient of `head` are float32. The backward pass recomputes each chunk's logits from the saved
    log-sum-exp.

    Args:
      hidden: hidden states that predict the targets, any float dtype.
      head: unembedding matrix, one row a token.
      target: token ids in [0, V).
      chunk: slots (columns of N) whose logits are held at once; the last chunk may be padded.
      softcap: c in `c * tanh(logits / c)` (Gemma 2), or None.
      collision: whether log sum_v p(v)^2 is wanted too; no gradient goes through it.

    Returns:
      float32 values [B, N].
    """
    slots = hidden.shape[1]
    chunk = max(1, min(chunk, slots))
    # Equal chunks: the fewest that respect the limit, then as short as they can be, to pad little.
    count = -(-slots // chunk)
    size = -(-slots // count)
    padding = count * size - slots
    if padding:
        hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
        target = jnp.pad(target, ((0, 0), (0, padding)))
    scores = _chunked_scores(count, softcap, collision, hidden, head, target)
    return jax.tree.map(lambda x: x[:, :slots], scores)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked_scores(
    count: int,
    softcap: float | None,
    collision: bool,
    hidden: Float[Array, "B N D"],
    head: Float[Array, "V D"],
    target: Int[Array, "B N"],
) -> TokenScores:
    return _forward(count, softcap, collision, hidden, head, target)[0]


def _forward(count, softcap, collision, hidden, head, target):
    rows = head.astype(hidden.dtype)

    def chunk_scores(_, inputs):
        states, ids = inputs
        logits = _cap(_logits(states, rows), softcap)
        top = jnp.max(logits, axis=-1)
        shifted = jnp.exp(logits - top[..., None])
        log_sum = jnp.log(jnp.sum(shifted, axis=-1))
        # A masked sum rather than a gather: it stays local when the vocabulary is split over devices.
        picked = jnp.sum(jnp.where(_is_target(ids, head.shape[0]), logits, 0.0), axis=-1)
        squares = jnp.log(jnp.sum(jnp.square(shifted), axis=-1)) - 2.0 * log_sum if collision else None
        # Subtracting `top` first keeps the difference exact where logits are large.
        return None, (TokenScores((picked - top) - log_sum, squares), top + log_sum)

    _, (scores, lse) = jax.lax.scan(chunk_scores, None, (_split(hidden, count), _split(target, count)))
    return jax.tree.map(_join, scores), (hidden, head, target, _join(lse))


def _backward(count, softcap, collision, residuals, cotangents):
    hidden, head, target, lse = residuals
    cotangent = cotangents.logps  # `collision` is a constant
    rows = head.astype(hidden.dtype)

    def chunk_gradient(head_gradient, inputs):
        states, ids, chunk_lse, outer = inputs
        raw = _logits(states, rows)
        capped = _cap(raw, softcap)
        probs = jnp.exp(capped - chunk_lse[..., None])
        gradient = outer[..., None] * (_is_target(ids, head.shape[0]).astype(jnp.float32) - probs)
        if softcap is not None:
            gradient = gradient * (1.0 - jnp.square(capped / softcap))
        gradient = gradient.astype(hidden.dtype)
        states_gradient = _product("bnv,vd->bnd", gradient, rows)
        head_gradient = head_gradient + _product("bnv,bnd->vd", gradient, states)
        return head_gradient, states_gradient.astype(hidden.dtype)

    chunks = tuple(_split(x, count) for x in (hidden, target, lse, cotangent.astype(jnp.float32)))
    head_gradient, hidden_gradient = jax.lax.scan(chunk_gradient, jnp.zeros(head.shape, jnp.float32), chunks)
    return _join(hidden_gradient), head_gradient.astype(head.dtype), None


_chunked_scores.defvjp(_forward, _backward)


def _product(subscripts: str, a: Array, b: Array) -> Array:
    # HIGHEST keeps float32 inputs exact on devices that would use tf32 or bfloat16; bfloat16 inputs are unaffected.
    return jnp.einsum(subscripts, a, b, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32)


def _logits(states: Float[Array, "B n D"], rows: Float[Array, "V D"]) -> Float[Array, "B n V"]:
    return _product("bnd,vd->bnv", states, rows)


def _cap(logits: Float[Array, "B n V"], softcap: float | None) -> Float[Array, "B n V"]:
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def _is_target(ids: Int[Array, "B n"], vocabulary: int) -> Array:
    return ids[..., None] == jnp.arange(vocabulary, dtype=ids.dtype)


def _split(x: Array, count: int) -> Array:
    """[B, count * n, …] -> [count, B, n, …]: the batch axis keeps its sharding."""
    return jnp.moveaxis(x.reshape(x.shape[0], count, x.shape[1] // count, *x.shape[2:]), 1, 0)


def _join(x: Array) -> Array:
    """[count, B, n, …] -> [B, count * n, …]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def branch_sums(
    values: Float[Array, "B N"], branch: Int[Array, "B N"], mask: Array, sides: int, places: int
) -> Float[Array, "B sides places"]:
    """Sums per-token values over each branch (`branch = side * places + place`) where `mask` is true.

    A masked sum, not a scatter: the same bits in every run and on every device.
    """
    member = (branch[..., None] == jnp.arange(sides * places)) & mask[..., None]
    sums = jnp.sum(jnp.where(member, values[..., None], 0.0), axis=1)
    return sums.reshape(values.shape[0], sides, places)
