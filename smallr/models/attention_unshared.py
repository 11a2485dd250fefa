"""Unshares prompts inside attention alone: rows [P C R] become plain causal sequences [P C][P R] for stock kernels.

A row is a tree: a prompt, and completions that hang from it. A token whose horizon is the next index ends a sequence,
which is the token itself and the keys that it sees. Written out one behind the other, these sequences need nothing but
causal attention within each. Projections and MLPs never see the copies: a query's output is taken from the first
sequence that holds it, and the gradients of a key's copies are added up in float32, always in the same order.

What does not fit (more sequences, tokens or copies of a token than there is room for, or a row that is no tree) gives NaN
for that row, which stops a run, rather than a number that is quietly wrong.

Dimension letters: B rows, T tokens, U tokens of a row once unshared, M sequences of a row, C copies of a token, H heads,
D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

COPIES = 2  # sequences of which a token may be part: a prompt with two completions
ALIGNMENT = 128  # tokens of an unshared row come in multiples of it: the kernels' tiles


class Unshared(NamedTuple):
    """Says where the tokens of rows stand in their unshared sequences.

    Attributes:
      source: the token of each unshared position; 0 where there is none.
      sequence: the sequence of each unshared position; -1 where there is none.
      place: the unshared position of each copy of a token; U where there is none.
      start: the first unshared position of each sequence; meaningless where its length is 0.
      length: tokens of each sequence.
      fits: whether the row is a tree and there is room for it.
    """

    source: Int[Array, "B U"]
    sequence: Int[Array, "B U"]
    place: Int[Array, "B T C"]
    start: Int[Array, "B M"]
    length: Int[Array, "B M"]
    fits: Bool[Array, "B"]


# Computes causal attention within each sequence: q, k, v of unshared rows, and where the sequences are.
Kernel = Callable[
    [Float[Array, "B U H D"], Float[Array, "B U K D"], Float[Array, "B U K D"], Unshared], Float[Array, "B U H D"]
]


def room(length: int) -> int:
    """Returns the unshared positions that rows of `length` tokens need at most: a prompt stands there twice."""
    return -(-COPIES * length // ALIGNMENT) * ALIGNMENT


def unshared_attention(
    kernel: Kernel,
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K D"],
    horizon: Int[Array, "B T"],
    sequences: int,
) -> Float[Array, "B T H D"]:
    """Runs a causal kernel on the unshared rows; `sequences` is the most that a row has."""
    where = unshare(horizon, sequences, room(q.shape[1]))
    mixed = kernel(_queries(q, where), _keys(k, where), _keys(v, where), where)
    return jnp.where(where.fits[:, None, None, None], _outputs(mixed, where), jnp.nan)


def unshare(horizon: Int[Array, "B T"], sequences: int, size: int) -> Unshared:
    """Finds the sequences of rows, in time linear in their tokens.

    Args:
      horizon: of the rows.
      sequences: M, room for sequences of a row.
      size: U, room for tokens of an unshared row.
    """
    return jax.vmap(lambda row: _unshare(row, sequences, size))(horizon)


def _unshare(horizon: Int[Array, "T"], sequences: int, size: int) -> Unshared:
    length = len(horizon)
    index = jnp.arange(length)
    horizon = jnp.minimum(horizon, length)
    real = horizon > index
    ends = real & (horizon == index + 1)
    ended = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(ends, dtype=jnp.int32)])  # before each index
    first = ended[:-1]  # sequence that holds the token
    copies = jnp.where(real, ended[horizon] - first, 0)
    depth = jnp.where(real, _keys_seen(horizon, real), 0)
    # A token is in `copies` neighbouring sequences: marks where it comes in and where it goes sum up to their lengths.
    marks = jnp.zeros(length + 2, jnp.int32).at[first].add(real).at[first + copies].add(-real.astype(jnp.int32))
    lengths = jnp.cumsum(marks)
    starts = jnp.cumsum(lengths) - lengths
    copy = jnp.arange(COPIES)
    holder = first[:, None] + copy  # sequence of each copy
    place = jnp.where(copy < copies[:, None], starts[holder] + depth[:, None], size)
    source = jnp.zeros(size, jnp.int32).at[place].set(index[:, None].astype(jnp.int32), mode="drop")
    sequence = jnp.full(size, -1, jnp.int32).at[place].set(holder, mode="drop")
    is_tree = jnp.all(jnp.where(ends, lengths[first] == depth + 1, True)) & jnp.all(jnp.where(real, copies >= 1, True))
    is_tree &= jnp.all(jnp.where(real, True, _keys_seen(horizon, real) == 0))
    fits = is_tree & (ended[-1] <= sequences) & (lengths.sum() <= size) & (copies.max() <= COPIES)
    return Unshared(source, sequence, place, _first(starts, sequences), _first(lengths, sequences), fits)


def _first(x: Int[Array, "N"], count: int) -> Int[Array, "M"]:
    return jnp.pad(x, (0, max(0, count - len(x))))[:count]


def _keys_seen(horizon: Int[Array, "T"], real: Bool[Array, "T"]) -> Int[Array, "T"]:
    """Returns how many earlier keys each query sees: those before it, without those whose horizon has passed."""
    index = jnp.arange(len(horizon))
    closing = jnp.zeros(len(horizon) + 1, jnp.int32).at[horizon].add(real)
    closed = jnp.cumsum(closing)[:-1]
    padding = jnp.cumsum(~real) - ~real
    return index - closed - padding


# ---- Tokens to unshared positions and back, each with its own transpose --------------------------------------


@jax.custom_vjp
def _queries(x: Float[Array, "B T H D"], where: Unshared) -> Float[Array, "B U H D"]:
    """Copies tokens to all their unshared positions. Only the first copy's output is read, so only it has a gradient."""
    return _take(x, where.source)


def _queries_forward(x, where):
    return _queries(x, where), where


def _queries_backward(where, gradient):
    return _at_places(gradient, where, 0), None


_queries.defvjp(_queries_forward, _queries_backward)


@jax.custom_vjp
def _keys(x: Float[Array, "B T K D"], where: Unshared) -> Float[Array, "B U K D"]:
    """Copies tokens to all their unshared positions; the gradients of the copies are added up in float32."""
    return _take(x, where.source)


def _keys_forward(x, where):
    return _keys(x, where), where


def _keys_backward(where, gradient):
    copies = [_at_places(gradient, where, copy).astype(jnp.float32) for copy in range(COPIES)]
    return sum(copies[1:], copies[0]).astype(gradient.dtype), None


_keys.defvjp(_keys_forward, _keys_backward)


@jax.custom_vjp
def _outputs(x: Float[Array, "B U H D"], where: Unshared) -> Float[Array, "B T H D"]:
    """Takes each token's output from its first copy; padding gets zeros."""
    return _at_places(x, where, 0)


def _outputs_forward(x, where):
    return _outputs(x, where), where


def _outputs_backward(where, gradient):
    first = jnp.take_along_axis(where.place[:, :, 0], where.source, axis=1)
    is_first = (where.sequence >= 0) & (first == jnp.arange(where.source.shape[1]))
    return jnp.where(is_first[..., None, None], _take(gradient, where.source), 0), None


_outputs.defvjp(_outputs_forward, _outputs_backward)


def _take(x: Float[Array, "B T H D"], source: Int[Array, "B U"]) -> Float[Array, "B U H D"]:
    return jnp.take_along_axis(x, source[..., None, None], axis=1)


def _at_places(x: Float[Array, "B U H D"], where: Unshared, copy: int) -> Float[Array, "B T H D"]:
    """Returns what stands at a copy of each token, 0 where it has no such copy; what else stands in x is never added."""
    place, size = where.place[:, :, copy], x.shape[1]
    return jnp.where((place < size)[..., None, None], _take(x, jnp.minimum(place, size - 1)), 0)
