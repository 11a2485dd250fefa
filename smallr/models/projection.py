"""A projection of a decoder: its weight, whatever form that has, and the adapter beside it, if any."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smallr.models.linear import linear
from smallr.models.quantized import Quantized


def adapter_name(name: str) -> str:
    """The attribute of a module that holds the adapter of its projection `name`."""
    return f"{name}_lora"


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

    The weight may be quantised (`smallr.models.quantized`).
    """
    product = functools.partial(linear, bias=bias, dtype=dtype, inputs=inputs)
    weight = getattr(module, name).get_value()
    if isinstance(weight, Quantized):
        # The backward pass dequantises again, rather than keep a dense weight of every layer.
        out = jax.checkpoint(lambda x, weight: product(x, weight.dense()), prevent_cse=False)(x, weight)
    else:
        out = product(x, weight)
    adapter = getattr(module, adapter_name(name), None)
    if adapter is None:
        return out
    return (out.astype(jnp.float32) + adapter(x, dtype=dtype, inputs=inputs)).astype(out.dtype)
