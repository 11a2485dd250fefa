"""A projection of a decoder: its weight, whatever form that has, and the adapter beside it, if any."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smallr.models.linear import linear, precision
from smallr.models.quantized import Quantized


def adapter_name(name: str) -> str:
    """The attribute of a module that holds the adapter of its projection `name`."""
    return f"{name}_lora"


@functools.partial(jax.tree_util.register_dataclass, data_fields=("rows",), meta_fields=("outputs",))
@dataclasses.dataclass(frozen=True)
class Turned:
    """A weight for inference alone: a row of all inputs for each output.

    XLA's CPU backend reads it as it lies; a weight with the outputs behind is packed anew for every product, which with few
    tokens costs half as much again as the product.

    Attributes:
      rows: outputs × inputs, in the compute dtype.
      outputs: shape of the outputs.
    """

    rows: Float[Array, "outputs inputs"]
    outputs: tuple[int, ...]

    def product(
        self, x: Float[Array, "*batch *inputs"], bias: Float[Array, "*outputs"] | None, inputs: int
    ) -> Float[Array, "*batch *outputs"]:
        """As `linear`, in the dtype of the rows."""
        batch = x.shape[: x.ndim - inputs]
        x = x.astype(self.rows.dtype).reshape(*batch, math.prod(x.shape[x.ndim - inputs :]))
        out = jax.lax.dot_general(
            x,
            self.rows,
            (((x.ndim - 1,), (1,)), ((), ())),
            precision=precision(x.dtype),
            preferred_element_type=jnp.float32,
        ).reshape(*batch, *self.outputs)
        return (out if bias is None else out + bias).astype(x.dtype)


def project(
    module: nnx.Module,
    name: str,
    x: Float[Array, "*batch *inputs"],
    bias: Float[Array, "*outputs"] | None = None,
    *,
    dtype: jnp.dtype | str,
    inputs: int = 1,
) -> Float[Array, "*batch *outputs"]:
    """`linear` of `x` with the weight `name` of `module`, plus what its adapter adds (`smallr.models.lora`).

    The weight may be quantised (`smallr.models.quantized`) or `Turned`.
    """
    product = functools.partial(linear, bias=bias, dtype=dtype, inputs=inputs)
    variable = getattr(module, name)
    weight = variable.get_value()
    if isinstance(weight, Turned):
        out = weight.product(x, bias, inputs)
    elif isinstance(weight, Quantized):
        # The backward pass dequantises again, rather than keep a dense weight of every layer.
        out = jax.checkpoint(lambda x, weight: product(x, weight.dense()), prevent_cse=False)(x, weight)
    else:
        axes = variable.get_metadata().get("axes")
        out = product(x, weight, axes=axes and axes[-weight.ndim :])  # without that of the layers
    adapter = getattr(module, adapter_name(name), None)
    if adapter is None:
        return out
    return (out.astype(jnp.float32) + adapter(x, dtype=dtype, inputs=inputs)).astype(out.dtype)
