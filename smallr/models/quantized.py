"""Holds a frozen base in 8 or 4 bits (QLoRA, arXiv 2305.14314): the weights of projections as codes and a scale per block.

Codes and scales are qwix's; here they are laid out. Two 4-bit codes share a byte, since on a CPU XLA gives each
element of an int4 array a byte of its own. A weight is dequantised where it is used, one layer at a time, and again in the
backward pass: no dense copy outlives a product. Embedding, head, norms and biases stay float32.
"""

from __future__ import annotations

import dataclasses
import functools
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from smallr.core.errors import UserError

FORMATS = ("float32", "int8", "int4", "nf4")
BLOCK = 64  # weights that share a scale, along an input axis: QLoRA's, section 3


@functools.partial(jax.tree_util.register_dataclass, data_fields=("codes", "scale"), meta_fields=("format", "axis"))
@dataclasses.dataclass(frozen=True)
class Quantized:
    """Represents a weight, or one layer's slice of it: both arrays may lose their leading axis together.

    Attributes:
      codes: int8, or two 4-bit codes a byte: those at 2i and 2i + 1 along `axis`.
      scale: float32, of each block.
      format: one of FORMATS.
      axis: the blocks' axis, counted from the end.
    """

    codes: Int[Array, "..."]
    scale: Float[Array, "..."]
    format: str
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of the weight."""
        shape = list(self.codes.shape)
        shape[self.axis] *= 1 if self.format == "int8" else 2
        return tuple(shape)

    def dense(self) -> Float[Array, "..."]:
        """Returns the weight, float32."""
        array = qwix().QArray(_unpacked(self), self.scale, qtype=self.format)
        return qwix().dequantize(array)


def qwix() -> ModuleType:
    """Returns the package, which is an extra.

    Raises:
      UserError: it is not installed.
    """
    try:
        import qwix
    except ImportError:
        raise UserError("a quantised base needs the package qwix: pip install qwix") from None
    return qwix


def quantize(weight: Float[Array, "layers ..."], format: str, inputs: int) -> Quantized:
    """Returns codes and scales of a stacked weight; blocks lie along its last input axis.

    Raises:
      UserError: 4 bits, and an input axis of odd length.
    """
    axis = inputs - weight.ndim  # from the end: axis `inputs` of [layers, *inputs, *outputs]
    size = weight.shape[axis]
    if format != "int8" and size % 2:
        raise UserError(f"config.lora.base: {format} needs an even number of inputs, a projection has {size}")
    step = 1 if format == "int8" else 2
    block = max(b for b in range(step, min(BLOCK, size) + 1, step) if size % b == 0)
    index = weight.ndim + axis
    channels = tuple(dim for dim in range(weight.ndim) if dim != index)
    array = qwix().quantize(weight, format, channelwise_axes=channels, tiled_axes={index: block})
    return Quantized(_packed(array.qvalue, format, axis), array.scale, format, axis)


def rounded(weight: np.ndarray, format: str, inputs: int) -> np.ndarray:
    """Returns what a float32 weight becomes by being quantised."""
    return weight if format == "float32" else np.asarray(_rounded(weight, format, inputs))


@functools.partial(jax.jit, static_argnames=("format", "inputs"))
def _rounded(weight: Float[Array, "layers ..."], format: str, inputs: int) -> Float[Array, "layers ..."]:
    return quantize(weight, format, inputs).dense()


def _packed(codes: Array, format: str, axis: int) -> Array:
    if format == "int8":
        return codes
    codes = codes.astype(jnp.uint8 if format == "nf4" else jnp.int8).astype(jnp.uint8) & 15
    pairs = _split(codes, axis)
    return jnp.take(pairs, 0, axis) | (jnp.take(pairs, 1, axis) << 4)


def _unpacked(weight: Quantized) -> Array:
    if weight.format == "int8":
        return weight.codes
    low, high = weight.codes & 15, weight.codes >> 4
    codes = jnp.stack([low, high], weight.axis).reshape(weight.shape)
    if weight.format == "nf4":
        return codes.astype(jnp.uint4)
    return ((codes.astype(jnp.int8) ^ 8) - 8).astype(jnp.int4)


def _split(codes: Array, axis: int) -> Array:
    """Returns the axis as pairs: [..., n, ...] to [..., n / 2, 2, ...]; the new axis has the old one's number from the end."""
    index = codes.ndim + axis
    return codes.reshape(*codes.shape[:index], codes.shape[index] // 2, 2, *codes.shape[index + 1 :])
