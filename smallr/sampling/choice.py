"""Draws the next token from logits: pure functions, row by row.

Rows of one call never mix, and a row's draw depends on its own key and index alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

BLOCK = 256  # of the vocabulary, whose probabilities are summed at once


class Rules(NamedTuple):
    """Parameters of each row, with the meanings of `SamplingParams`."""

    temperature: Float[Array, "S"]
    top_k: Int[Array, "S"]
    top_p: Float[Array, "S"]
    min_p: Float[Array, "S"]
    key: UInt32[Array, "S 2"]  # key data of threefry


def choose(logits: Float[Array, "S V"], rules: Rules, index: Int[Array, "S"]) -> Int[Array, "S"]:
    """Chooses the next token of each row: the likeliest (the first of equals) at temperature 0, else a draw.

    Args:
      logits: float32; at least one of a row is finite, -inf is never drawn.
      rules: how to draw.
      index: of the token in its completion, by which the row's key is folded.
    """

    def draw(logits: Float[Array, "S V"]) -> Int[Array, "S"]:
        temperature = jnp.where(rules.temperature > 0, rules.temperature, 1.0)[:, None]
        scaled = (logits - logits.max(-1, keepdims=True)) / temperature
        filtered = (rules.top_k > 0) | (rules.top_p < 1) | (rules.min_p > 0)
        drawn_from = rules.temperature > 0
        probs = jax.lax.cond(
            jnp.any(filtered & drawn_from), lambda x: jnp.where(kept(x, rules), jnp.exp(x), 0.0), jnp.exp, scaled
        )
        return jnp.where(drawn_from, _inverse(probs, _uniform(rules.key, index)), jnp.argmax(logits, -1))

    return jax.lax.cond(jnp.any(rules.temperature > 0), draw, lambda logits: jnp.argmax(logits, -1), logits)


def kept(scaled: Float[Array, "S V"], rules: Rules) -> Bool[Array, "S V"]:
    """Marks the tokens that may be drawn.

    `top_k`: the k likeliest. `top_p` (arXiv 1904.09751): of those the fewest likeliest that hold the share p of their
    probability. `min_p` (arXiv 2407.01082): those at least p times as likely as the likeliest. Tokens as likely as the
    last one taken are all taken, so that no order among equals matters.

    Args:
      scaled: logits after temperature, of which the largest of each row is 0.
      rules: the parameters.
    """
    ranks = _ranks(scaled)
    vocabulary = scaled.shape[1]
    k = jnp.where(rules.top_k > 0, jnp.minimum(rules.top_k, vocabulary), vocabulary).astype(jnp.float32)
    top = ranks >= _threshold(ranks, jnp.ones_like(scaled), k)[:, None]
    probs = jnp.where(top, jnp.exp(scaled), 0.0)
    nucleus = ranks >= _threshold(ranks, probs, rules.top_p * probs.sum(-1))[:, None]
    nucleus |= (rules.top_p >= 1)[:, None]
    return top & nucleus & (scaled >= jnp.log(rules.min_p)[:, None])


def _ranks(x: Float[Array, "S V"]) -> Int[Array, "S V"]:
    """Returns integers in the order of the floats, equal for equals."""
    bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.int32)  # + 0 makes -0 into 0
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _threshold(ranks: Int[Array, "S V"], weight: Float[Array, "S V"], need: Float[Array, "S"]) -> Int[Array, "S"]:
    """Finds the largest rank at or above which a row's weights add up to `need`, bit by bit, without a sort."""

    def bit(i, found):
        candidate = found + jnp.left_shift(jnp.int32(1), 31 - i)  # the first step wraps from the least to 0
        enough = jnp.where(ranks >= candidate[:, None], weight, 0.0).sum(-1) >= need
        return jnp.where(enough, candidate, found)

    return jax.lax.fori_loop(0, 32, bit, jnp.full(need.shape, -(2**31), jnp.int32))


def _uniform(key: UInt32[Array, "S 2"], index: Int[Array, "S"]) -> Float[Array, "S"]:
    """Draws one number in [0, 1) for each row."""

    def row(key, index):
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), index))

    return jax.vmap(row)(key, index)


def _inverse(probs: Float[Array, "S V"], uniform: Float[Array, "S"]) -> Int[Array, "S"]:
    """Finds the token at which the cumulative sum of the (unnormalised) probabilities passes uniform × total."""
    rows, vocabulary = probs.shape
    blocks = jnp.pad(probs, ((0, 0), (0, -vocabulary % BLOCK))).reshape(rows, -1, BLOCK)
    sums = jnp.cumsum(blocks.sum(-1), axis=-1)
    block, rest = _passed(sums, uniform * sums[:, -1])
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    within, _ = _passed(jnp.cumsum(inside, axis=-1), rest)
    return block * BLOCK + within


def _passed(sums: Float[Array, "S n"], goal: Float[Array, "S"]) -> tuple[Int[Array, "S"], Float[Array, "S"]]:
    """Finds the first index whose cumulative sum is above the goal, and what the goal leaves there."""
    last = jnp.sum(sums < sums[:, -1:], axis=-1)  # the last index that adds anything, if rounding led beyond
    index = jnp.minimum(jnp.sum(sums <= goal[:, None], axis=-1), last)
    before = jnp.take_along_axis(sums, jnp.maximum(index - 1, 0)[:, None], axis=1)[:, 0]
    return index, goal - jnp.where(index > 0, before, 0.0)
