"""Holds AdamW's two moments in 8 bits each, block by block.

As in arXiv 2110.02861 a block of neighbours shares a float32 scale, its largest magnitude, and codes are finer near zero.
Here a code is the fourth root of the share of the scale, so both ways are arithmetic, where a table of codes would be a gather,
which is slow on TPUs. A code of the first moment spans 127 ^ 4, of the second 255 ^ 4. Rounding is stochastic: the mean of
squares changes by a thousandth a step, which the nearest code would never show. The random bits are a function of the step,
so a resumed run has the same.

Dimension letters: L layers, I inputs, O outputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt32

from smallr.training.matrices import Views

LARGEST_BLOCK = 256
LEAST = 4096  # entries of a layer's matrix: smaller ones stay in float32, as in the paper


class Moments(NamedTuple):
    """Holds both moments of a matrix: int8 and uint8 codes of its shape, and a scale for each block."""

    mean_codes: Int[Array, "L I O"]
    mean_scales: Float[Array, "L i o"]
    square_codes: Int[Array, "L I O"]
    square_scales: Float[Array, "L i o"]


class State(NamedTuple):
    """Holds the steps done, and the moments by the path of the matrix."""

    count: Int[Array, ""]
    moments: dict[str, Moments]


def block_size(length: int) -> int:
    """Returns how many entries share a scale along an axis: its largest divisor up to 256."""
    return max(size for size in range(1, min(length, LARGEST_BLOCK) + 1) if length % size == 0)


def quantize(
    x: Float[Array, "L I O"], axis: int, bits: UInt32[Array, "L I O"], dtype: jnp.dtype
) -> tuple[Int[Array, "L I O"], Float[Array, "L i o"]]:
    """Returns codes and scales of blocks along an axis; `dtype` is int8, or uint8 for what is never negative.

    Args:
      x: what is held.
      axis: of the blocks.
      bits: 16 random bits for each entry, which decide on the direction of rounding.
      dtype: of the codes.
    """
    blocks = _in_blocks(jnp.abs(x), axis)
    scales = jnp.max(blocks, axis=axis + 1)
    shares = blocks / jnp.expand_dims(jnp.where(scales > 0, scales, 1.0), axis + 1)
    largest = jnp.iinfo(dtype).max
    roots = jnp.sqrt(jnp.sqrt(shares)).reshape(x.shape) * largest
    codes = jnp.minimum(jnp.floor(roots + bits.astype(jnp.float32) / 2**16), largest)
    if dtype == jnp.uint8:
        codes = jnp.where(x > 0, jnp.maximum(codes, 1), codes)  # a square of 0 would make a step without bound
    return (jnp.sign(x) * codes).astype(dtype), scales


def dequantize(codes: Int[Array, "L I O"], scales: Float[Array, "L i o"], axis: int) -> Float[Array, "L I O"]:
    """Inverts `quantize`, up to its rounding."""
    shares = codes.astype(jnp.float32) / jnp.iinfo(codes.dtype).max
    fourth = jnp.square(jnp.square(shares)) * jnp.sign(shares)
    return (_in_blocks(fourth, axis) * jnp.expand_dims(scales, axis + 1)).reshape(codes.shape)


def _in_blocks(x: Array, axis: int) -> Array:
    size = block_size(x.shape[axis])
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])


def scale_by_adam_8bit(b1: float, b2: float, eps: float, views: Views) -> optax.GradientTransformation:
    """Builds Adam's direction (arXiv 1412.6980, algorithm 1) on matrices, from moments that are held in 8 bits.

    Args:
      b1: decay of the mean of gradients.
      b2: decay of the mean of their squares.
      eps: added to the root of the second.
      views: of the parameters.
    """

    def init(params: Mapping[str, Any]) -> State:
        matrices = {path: x for path, x in params.items() if not isinstance(x, optax.MaskedNode)}
        moments = {path: _zeros(x.shape, views[path].block_axis) for path, x in matrices.items()}
        return State(jnp.zeros((), jnp.int32), moments)

    def update(updates: Mapping[str, Any], state: State, params: Any = None) -> tuple[dict[str, Any], State]:
        count = optax.safe_increment(state.count)
        key, new, moments = jax.random.fold_in(jax.random.key(0), count), dict(updates), {}
        for index, (path, held) in enumerate(state.moments.items()):
            axis, gradient = views[path].block_axis, updates[path]
            mean = b1 * dequantize(held.mean_codes, held.mean_scales, axis) + (1 - b1) * gradient
            squares = b2 * dequantize(held.square_codes, held.square_scales, axis) + (1 - b2) * jnp.square(gradient)
            new[path] = (mean / (1 - b1**count)) / (jnp.sqrt(squares / (1 - b2**count)) + eps)
            bits = jax.random.bits(jax.random.fold_in(key, index), gradient.shape)
            moments[path] = _held(mean, squares, axis, bits)
        return new, State(count, moments)

    return optax.GradientTransformation(init, update)


def _zeros(shape: tuple[int, ...], axis: int) -> Moments:
    blocks = *shape[:axis], shape[axis] // block_size(shape[axis]), *shape[axis + 1 :]
    scales = jnp.zeros((2, *blocks), jnp.float32)
    return Moments(jnp.zeros(shape, jnp.int8), scales[0], jnp.zeros(shape, jnp.uint8), scales[1])


def _held(mean: Array, squares: Array, axis: int, bits: UInt32[Array, "L I O"]) -> Moments:
    return Moments(*quantize(mean, axis, bits & 0xFFFF, jnp.int8), *quantize(squares, axis, bits >> 16, jnp.uint8))
