"""Applies a projection of a decoder: its weight, in whatever form it is held, and its adapter if it has one."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smallr.core.sharding import by_platform
from smallr.models.linear import linear, precision
from smallr.models.quantized import Quantized


def adapter_name(name: str) -> str:
    """Returns the name of the module's attribute that holds the adapter of its projection `name`."""
    return f"{name}_lora"


FEW = 64  # vectors, so many at most, for which `products_of_rows` has the rows on the left
FUSED = (("q", "k", "v"), ("gate", "up"))  # projections of one input, which can be fused into one product


@functools.partial(jax.tree_util.register_dataclass, data_fields=("rows",), meta_fields=("outputs",))
@dataclasses.dataclass(frozen=True)
class TransposedWeight:
    """Holds a transposed weight for inference: of one projection, or of the fused projections of one group of FUSED.

    XLA's CPU backend reads a transposed weight in place. It packs an untransposed one anew for every product, which with
    few tokens costs half as much again as the product. With few tokens a fused product is also faster than its parts: the
    products alone by 30 % on two cores with 32 tokens and the widths of SmolLM2-135M; a whole decoding step gains less than
    its noise.

    Attributes:
      rows: outputs × inputs, in the compute dtype; one row holds all inputs of an output.
      outputs: shape of the outputs of each projection, in the order of the rows.
    """

    rows: Float[Array, "outputs inputs"]
    outputs: tuple[tuple[int, ...], ...]

    def products(self, x: Float[Array, "*batch *inputs"], inputs: int) -> tuple[Float[Array, "*batch *outputs"], ...]:
        """Computes each projection in float32, as `linear` does without a bias."""
        batch = x.shape[: x.ndim - inputs]
        x = x.astype(self.rows.dtype).reshape(*batch, math.prod(x.shape[x.ndim - inputs :]))
        out = products_of_rows(x, self.rows)
        ends = list(itertools.accumulate(math.prod(shape) for shape in self.outputs))
        parts = jnp.split(out, ends[:-1], axis=-1)
        return tuple(part.reshape(*batch, *shape) for part, shape in zip(parts, self.outputs, strict=True))


def products_of_rows(
    x: Float[Array, "*batch inputs"], rows: Float[Array, "outputs inputs"]
) -> Float[Array, "*batch outputs"]:
    """Computes the products of each vector with each row, in float32.

    XLA's CPU backend packs the right operand of every product anew, and reads the left one where it lies. With few
    vectors most of the bytes are the rows', so they stand on the left in float32. In bfloat16 it would make a float32 copy
    of all rows for one vector, so that gets one of zeros beside it.
    """
    count = math.prod(x.shape[:-1])
    plain = functools.partial(_dot, axis=x.ndim - 1)
    if x.dtype == jnp.bfloat16 and count == 1:
        return by_platform(x, rows, cpu=_of_two, default=plain)
    if x.dtype != jnp.float32 or not 1 < count <= FEW:
        return plain(x, rows)

    def rows_left(x: Array, rows: Array) -> Array:
        out = jax.lax.optimization_barrier(_dot(rows, x.reshape(count, -1), 1))  # else XLA would turn it around again
        return out.T.reshape(*x.shape[:-1], -1)

    return by_platform(x, rows, cpu=rows_left, default=plain)


def _of_two(x: Array, rows: Array) -> Array:
    vector = x.reshape(1, -1)
    two = jax.lax.optimization_barrier(jnp.concatenate([vector, jnp.zeros_like(vector)]))  # else XLA would see one
    return jax.lax.optimization_barrier(_dot(two, rows, 1))[0].reshape(*x.shape[:-1], -1)


def _dot(a: Array, b: Array, axis: int) -> Array:
    contract = (((axis,), (1,)), ((), ()))
    return jax.lax.dot_general(a, b, contract, precision=precision(a.dtype), preferred_element_type=jnp.float32)


@functools.partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=())
@dataclasses.dataclass(frozen=True)
class FusedIntoFirst:
    """Stands for a weight whose rows are in the fused weight of the first projection of its group."""


def project_all(
    module: nnx.Module,
    names: tuple[str, ...],
    x: Float[Array, "*batch inputs"],
    biases: tuple[Array | None, ...],
    *,
    dtype: jnp.dtype | str,
) -> tuple[Float[Array, "*batch *outputs"], ...]:
    """Applies `project` to `x` with each weight of one group of FUSED."""
    first = getattr(module, names[0]).get_value()
    if not (isinstance(first, TransposedWeight) and len(first.outputs) > 1):
        return tuple(project(module, name, x, bias, dtype=dtype) for name, bias in zip(names, biases, strict=True))
    outs = zip(names, biases, first.products(x, 1), strict=True)
    return tuple(
        _adapted(module, name, x, _biased(out, bias, first.rows.dtype), dtype=dtype, inputs=1)
        for name, bias, out in outs
    )


def project(
    module: nnx.Module,
    name: str,
    x: Float[Array, "*batch *inputs"],
    bias: Float[Array, "*outputs"] | None = None,
    *,
    dtype: jnp.dtype | str,
    inputs: int = 1,
) -> Float[Array, "*batch *outputs"]:
    """Applies the weight `name` of `module` to `x` as `linear` does, and adds what its adapter gives (`smallr.models.lora`).

    The weight may be quantised (`smallr.models.quantized`) or transposed (`TransposedWeight`).
    """
    product = functools.partial(linear, bias=bias, dtype=dtype, inputs=inputs)
    variable = getattr(module, name)
    weight = variable.get_value()
    if isinstance(weight, TransposedWeight):
        out = _biased(*weight.products(x, inputs), bias, weight.rows.dtype)
    elif isinstance(weight, Quantized):
        # The backward pass dequantises again, rather than keep a dense weight of every layer.
        out = jax.checkpoint(lambda x, weight: product(x, weight.dense()), prevent_cse=False)(x, weight)
    else:
        axes = variable.get_metadata().get("axes")
        out = product(x, weight, axes=axes and axes[-weight.ndim :])  # without that of the layers
    return _adapted(module, name, x, out, dtype=dtype, inputs=inputs)


def _biased(out: Array, bias: Array | None, dtype: jnp.dtype) -> Array:
    return (out if bias is None else out + bias).astype(dtype)


def _adapted(module: nnx.Module, name: str, x: Array, out: Array, *, dtype: jnp.dtype | str, inputs: int) -> Array:
    adapter = getattr(module, adapter_name(name), None)
    if adapter is None:
        return out
    return (out.astype(jnp.float32) + adapter(x, dtype=dtype, inputs=inputs)).astype(out.dtype)
