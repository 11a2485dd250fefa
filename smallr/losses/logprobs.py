"""Computes log-probs of scored tokens without ever holding [B, N, V] logits.

The vocabulary is walked in chunks, all tokens at once, with a running log-sum-exp: a chunk of the head is read once a
pass, its gradient is complete when the walk has passed it, and on a CPU a tile of logits never leaves the cache. The
same walk serves several heads at once (`head_scores`): Q values of actions and their log-sum-exp, without [H, B, N, V].

Cost model, for n = B N scored tokens, width D, vocabulary V: 2 n V D FLOPs forward and 6 n V D backward (the logits are
computed again, then two products), against 2 and 4 for a dense head that keeps its logits; three exponentials a
logit. Bytes: the head once forward, the head and its gradient once backward, n D floats a chunk for the gradient of
the hidden states. Peak extra memory: n x chunk floats of logits and as many of their gradient, instead of n V.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from smallr.core.sharding import by_platform, constrain, parts
from smallr.models.linear import precision, transpose_minor

# Logits held at once where no chunk is given: what two cores keep in their second-level caches; 512 MiB elsewhere.
CPU_TILE, ACCELERATOR_TILE = 3 * 2**18, 2**27
CHUNK_MULTIPLE = 128
FEWEST = 1024  # tokens that a chunk is sized for at least: with fewer its rows, not its logits, fill the caches
BELOW_ALL = -1e30  # finite, so that the first chunk's correction is 0 and not NaN


class TokenScores(NamedTuple):
    """Holds what a head computes for each scored token, float32 [B, N], or [H, B, N] of several heads.

    Attributes:
      logps: log p(target).
      log_sum_p2: log sum_v p(v)^2, the expected probability of a token drawn from p; a constant, or None if not asked.
      logits: logit of the target, or None if not asked.
      log_sum_exp: log sum_v exp(logit of v), or None if not asked.
      entropy: -sum_v p(v) log p(v) in nats, a constant, or None if not asked.
      is_top: 1 where no token is more probable than the target, else 0; a constant, or None if not asked.
    """

    logps: Float[Array, "*H B N"]
    log_sum_p2: Float[Array, "*H B N"] | None = None
    logits: Float[Array, "*H B N"] | None = None
    log_sum_exp: Float[Array, "*H B N"] | None = None
    entropy: Float[Array, "*H B N"] | None = None
    is_top: Float[Array, "*H B N"] | None = None


class _Walk(NamedTuple):
    """Holds what is static in a walk over the vocabulary.

    Attributes:
      chunk: entries whose logits are held at once; 0 chooses by platform.
      softcap: c in `c * tanh(logits / c)`, or None.
      log_sum_p2: whether log sum_v p(v)^2 is wanted.
      logits: whether the target's logit and the log-sum-exp are wanted.
      entropy: whether the entropy of p is wanted, and whether the target is the most probable token.
      heads: how many heads are walked side by side.
    """

    chunk: int
    softcap: float | None = None
    log_sum_p2: bool = False
    logits: bool = False
    entropy: bool = False
    heads: int = 1


def token_logps(
    hidden: Float[Array, "B N D"],
    head: Float[Array, "V D"],
    target: Int[Array, "B N"],
    *,
    chunk: int = 0,
    softcap: float | None = None,
) -> Float[Array, "B N"]:
    """Gives log p(target) under softmax(hidden @ head.T): `token_scores` without more."""
    return token_scores(hidden, head, target, chunk=chunk, softcap=softcap).logps


def token_scores(
    hidden: Float[Array, "B N D"],
    head: Float[Array, "V D"],
    target: Int[Array, "B N"],
    *,
    chunk: int = 0,
    softcap: float | None = None,
    log_sum_p2: bool = False,
    logits: bool = False,
    entropy: bool = False,
) -> TokenScores:
    """Scores targets under softmax(hidden @ head.T), in float32, `chunk` entries of the vocabulary at a time.

    The products run in the dtype of `hidden` with float32 accumulation; log-sum-exp, soft-cap and the
    gradient of `head` are float32. The backward pass recomputes each chunk's logits from the saved
    log-sum-exp.

    Args:
      hidden: hidden states that predict the targets, any float dtype.
      head: unembedding matrix, one row a token.
      target: token ids in [0, V).
      chunk: entries of the vocabulary (on each of its shards) whose logits are held at once; 0 chooses by platform.
      softcap: c in `c * tanh(logits / c)` (Gemma 2), or None.
      log_sum_p2: whether log sum_v p(v)^2 is wanted too; no gradient goes through it.
      logits: whether the target's logit and the log-sum-exp are wanted too; gradients go through both.
      entropy: whether `entropy` and `is_top` are wanted too; no gradient goes through them.

    Returns:
      float32 values [B, N].
    """
    walk = _Walk(chunk, softcap, log_sum_p2, logits, entropy)
    scores = _scores(walk, _flat(hidden), _sharded(head), target.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(target.shape), scores)


def head_scores(
    hidden: Float[Array, "*H B N D"],
    heads: Float[Array, "H V D"],
    target: Int[Array, "B N"],
    *,
    chunk: int = 0,
    softcap: float | None = None,
) -> TokenScores:
    """Scores targets under several heads in one walk: logit, log-sum-exp and log-prob, all differentiable.

    Args:
      hidden: hidden states, the same for all heads [B, N, D] or each head's own [H, B, N, D].
      heads: a matrix a head, one row a token.
      target: token ids in [0, V), the same for all heads.
      chunk: as in `token_scores`, for each head; 0 divides what is held at once by the number of heads.
      softcap: as in `token_scores`.

    Returns:
      float32 values [H, B, N]; what else `TokenScores` has is None.
    """
    walk = _Walk(chunk, softcap, logits=True, heads=heads.shape[0])
    own = hidden.ndim == 4
    states = jax.vmap(_flat)(hidden) if own else _flat(hidden)
    each = jax.vmap(partial(_scores, walk), in_axes=(0 if own else None, 0, None))
    scores = each(states, jax.vmap(_sharded)(heads), target.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(heads.shape[0], *target.shape), scores)


def _flat(hidden: Float[Array, "B N D"]) -> Float[Array, "n D"]:
    return constrain(hidden.reshape(-1, hidden.shape[-1]), "scored", "activation_embed")


def _sharded(head: Float[Array, "V D"]) -> Float[Array, "*S v D"]:
    """Returns the head by shards of its vocabulary: split over devices, each walks its own part.

    One that is not split stays as it is: several heads side by side with an axis of length 1 more would be copied whole, since
    XLA's CPU backend takes such an axis for a change of layout.
    """
    shards = parts("vocab", head.shape[0])
    return head if shards == 1 else head.reshape(shards, head.shape[0] // shards, head.shape[1])


def _shards(table: Float[Array, "*S v D"]) -> int:
    return 1 if table.ndim == 2 else len(table)


def chunking(vocabulary: int, tokens: int, chunk: int, backend: str) -> tuple[int, int]:
    """Returns how many chunks of how many entries the vocabulary, or a device's shard of it, is walked in; 0 as above.

    `tokens` are those that are scored at once, over all devices of the mesh (`jax.set_mesh`); `backend` is JAX's name.
    """
    tile = CPU_TILE if backend == "cpu" else ACCELERATOR_TILE
    return _chunks(vocabulary // parts("vocab", vocabulary), tokens, _Walk(chunk), tile)


class _Chunk(NamedTuple):
    """Holds a part of the vocabulary, seen by all tokens. Arrays of logits are [shards, entries, tokens]."""

    rows: Float[Array, "S c D"]
    logits: Float[Array, "S c n"]  # soft-capped
    hit: Bool[Array, "S c n"]  # whether the entry is the token's target


def _chunks(length: int, tokens: int, walk: _Walk, tile: int) -> tuple[int, int]:
    """Returns the number and size of the chunks of a shard; the last may be smaller."""
    chunk = walk.chunk
    if not chunk:
        local = walk.heads * max(FEWEST, tokens // parts("scored", tokens))
        chunk = max(tile // local // CHUNK_MULTIPLE, 1) * CHUNK_MULTIPLE
    count = -(-length // min(chunk, length))
    return count, -(-length // count)


def _chunk_of(table, columns, target, softcap, start, size) -> _Chunk:
    rows = lax.dynamic_slice_in_dim(table, start, size, axis=table.ndim - 2).astype(columns.dtype)
    rows = constrain(rows.reshape(-1, *rows.shape[-2:]), "vocab", None, "activation_embed")
    ids = table.shape[-2] * jnp.arange(len(rows))[:, None] + start + jnp.arange(size)
    return _Chunk(rows, _cap(_dot(rows, columns, ((2,), (0,))), softcap), ids[..., None] == target)


def _each_chunk(step, length: int, size: int, state):
    """Runs `step(start, size, state)` for each chunk of a shard; one of another size stands behind the loop.

    So no step has to mask entries that another one has: a pass over the logits, which a short product cannot hide.
    """
    whole, rest = divmod(length, size)
    state = lax.fori_loop(0, whole, lambda i, state: step(i * size, size, state), state)
    return step(whole * size, rest, state) if rest else state


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(
    walk: _Walk, hidden: Float[Array, "n D"], table: Float[Array, "*S v D"], target: Int[Array, "n"]
) -> TokenScores:
    return _forward(walk, hidden, table, target)[0]


def _forward(walk, hidden, table, target):
    scores, lse = _by_platform(partial(_forward_walk, walk=walk), hidden, table, target)
    return scores, (hidden, table, target, lse)


def _forward_walk(hidden, table, target, *, walk, tile):
    columns, length = transpose_minor(hidden), table.shape[-2]

    def step(start, size, state):
        top, total, picked, squares, products = state
        _, logits, hit = _chunk_of(table, columns, target, walk.softcap, start, size)
        new_top = jnp.maximum(top, jnp.max(logits, axis=1))
        shifted = jnp.exp(logits - new_top[:, None])
        shrink = jnp.exp(top - new_top)
        # A masked sum rather than a gather: it stays local when the vocabulary is split over devices.
        picked = picked + jnp.sum(jnp.where(hit, logits, 0.0), axis=1)
        if walk.log_sum_p2:
            squares = squares * jnp.square(shrink) + jnp.sum(jnp.square(shifted), axis=1)
        if walk.entropy:
            products = products * shrink + jnp.sum(shifted * logits, axis=1)
        return new_top, total * shrink + jnp.sum(shifted, axis=1), picked, squares, products

    zeros = jnp.zeros((_shards(table), len(hidden)), jnp.float32)
    start = zeros + BELOW_ALL, zeros, zeros, zeros, zeros
    _, size = _chunks(length, len(hidden), walk, tile)
    top, total, picked, squares, products = _each_chunk(step, length, size, start)
    # The shards' sums are brought to one maximum and added.
    whole = jnp.max(top, axis=0)
    shrink = jnp.exp(top - whole)
    log_sum = jnp.log(jnp.sum(total * shrink, axis=0))
    target_logits, lse = jnp.sum(picked, axis=0), whole + log_sum
    # Subtracting the maximum first keeps the difference exact where logits are large.
    scores = TokenScores((target_logits - whole) - log_sum)
    if walk.log_sum_p2:
        log_squares = jnp.log(jnp.sum(squares * jnp.square(shrink), axis=0)) - 2.0 * log_sum
        scores = scores._replace(log_sum_p2=log_squares)
    if walk.entropy:
        mean = jnp.sum(products * shrink, axis=0) / jnp.exp(log_sum)
        scores = scores._replace(entropy=lse - mean, is_top=(target_logits >= whole).astype(jnp.float32))
    return scores._replace(logits=target_logits, log_sum_exp=lse) if walk.logits else scores, lse


def _backward(walk, residuals, cotangents):
    hidden, table, target, lse = residuals
    # A logit's derivative is hit * (whether it is the target) - (its probability) * spread; the others are constants.
    hit = spread = cotangents.logps.astype(jnp.float32)
    if walk.logits:
        hit, spread = hit + cotangents.logits, spread - cotangents.log_sum_exp
    run = partial(_backward_walk, walk=walk)
    hidden_gradient, table_gradient = _by_platform(run, hidden, table, target, lse, hit, spread)
    return hidden_gradient.astype(hidden.dtype), table_gradient.astype(table.dtype), None


def _backward_walk(hidden, table, target, lse, hit, spread, *, walk, tile):
    columns, length, wide = transpose_minor(hidden), table.shape[-2], hidden.shape[1] > len(hidden)

    def step(start, size, state):
        states_gradient, table_gradient = state
        at = _chunk_of(table, columns, target, walk.softcap, start, size)
        probs = jnp.exp(at.logits - lse)
        # Of the log-prob alone both factors are one.
        is_target = at.hit.astype(jnp.float32)
        slope = hit * is_target - spread * probs if walk.logits else hit * (is_target - probs)
        if walk.softcap is not None:
            slope = slope * (1.0 - jnp.square(at.logits / walk.softcap))
        slope = slope.astype(hidden.dtype)
        # Each shard of the vocabulary sums for itself, so that devices talk once, after the walk. The smaller one is transposed.
        left, right = (slope, at.rows) if wide else (at.rows, slope)
        states_gradient += _dot(transpose_minor(left), right, ((2,), (1,)), ((0,), (0,)))
        rows_gradient = constrain(_dot(slope, hidden, ((2,), (0,))), "vocab", None, "embed")
        rows_gradient = rows_gradient.reshape(*table.shape[:-2], *rows_gradient.shape[1:])
        put = partial(lax.dynamic_update_slice_in_dim, axis=table.ndim - 2)
        return states_gradient, put(table_gradient, rows_gradient, start)

    like = hidden if wide else columns
    start = jnp.zeros((_shards(table), *like.shape), jnp.float32), jnp.zeros(table.shape, jnp.float32)
    _, size = _chunks(length, len(hidden), walk, tile)
    states_gradient, table_gradient = _each_chunk(step, length, size, start)
    states_gradient = jnp.sum(states_gradient, axis=0)
    return states_gradient if wide else states_gradient.T, table_gradient


_scores.defvjp(_forward, _backward)


def _by_platform(walk, *args):
    """Runs `walk` with the tile of the platform that the program is compiled for."""
    choices = [partial(walk, tile=tile) for tile in (CPU_TILE, ACCELERATOR_TILE)]
    with jax.named_scope("head"):
        return by_platform(*args, cpu=choices[0], default=choices[1])


def _dot(a, b, contract, batch=((), ())):
    return lax.dot_general(a, b, (contract, batch), precision=precision(a.dtype), preferred_element_type=jnp.float32)


def _cap(logits: Float[Array, "S c n"], softcap: float | None) -> Float[Array, "S c n"]:
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


def completion_sums(
    values: Float[Array, "B N"], completion: Int[Array, "B N"], mask: Array, completions: int, examples: int
) -> Float[Array, "B completions examples"]:
    """Sums per-token values over each completion (`completion = s * examples + p`) where `mask` is true.

    A masked sum, not a scatter: the same bits in every run and on every device.
    """
    member = (completion[..., None] == jnp.arange(completions * examples)) & mask[..., None]
    sums = jnp.sum(jnp.where(member, values[..., None], 0.0), axis=1)
    return sums.reshape(values.shape[0], completions, examples)
