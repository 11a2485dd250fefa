"""Computes the one dense product of the decoder in `dtype`, with masters and their gradients in float32."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

from smallr.core.sharding import by_platform, constrain, is_sharded


def precision(dtype: jnp.dtype | str) -> lax.Precision:
    """Returns HIGHEST for float32, so that no accelerator swaps in tf32 or bfloat16 passes; DEFAULT for bfloat16."""
    return lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else lax.Precision.DEFAULT


def linear(
    x: Float[Array, "*batch *inputs"],
    w: Float[Array, "*inputs *outputs"],
    bias: Float[Array, "*outputs"] | None = None,
    *,
    dtype: jnp.dtype | str,
    inputs: int = 1,
    axes: tuple[str | None, ...] | None = None,
) -> Float[Array, "*batch *outputs"]:
    """Computes `x · w + bias`, contracting the last `inputs` axes of `x` with the first `inputs` axes of `w`.

    Args:
      x: activations, any float dtype; cast to `dtype`.
      w: float32 master weight; cast to `dtype` for the product.
      bias: float32 or None; added to the float32 accumulator.
      dtype: compute dtype, "float32" or "bfloat16". Sums are always float32.
      inputs: number of contracted axes.
      axes: logical axes of `w` (`smallr.core.sharding`), if it is split over devices by them: it is then gathered in `dtype`.

    Returns:
      The product in `dtype`. The gradient of `w` and `bias` is float32 and never rounded to `dtype`.

    Raises:
      ValueError: the contracted axes differ.
    """
    if x.shape[x.ndim - inputs :] != w.shape[:inputs]:
        raise ValueError(f"linear: the last {inputs} axes of x {x.shape} are not the first {inputs} of w {w.shape}")
    return _linear(x.astype(dtype), w, bias, jnp.dtype(dtype), inputs, axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _linear(x, w, bias, dtype, inputs, axes):
    batch = x.ndim - inputs
    contract = (tuple(range(batch, x.ndim)), tuple(range(inputs)))
    out = _dot(x, _gathered(w, dtype, axes), contract)
    return (out if bias is None else out + bias).astype(dtype)


def _forward(x, w, bias, dtype, inputs, axes):
    return _linear(x, w, bias, dtype, inputs, axes), (x, w, bias is not None)


def _backward(dtype, inputs, axes, residuals, dout):
    x, w, has_bias = residuals
    batch, outputs = x.ndim - inputs, w.ndim - inputs
    # Cast w again rather than keep the forward's copy: a cast is cheap, a second copy of the weights is not.
    dx = _dot(dout, _gathered(w, dtype, axes), (tuple(range(batch, batch + outputs)), tuple(range(inputs, w.ndim))))
    dw = weight_gradient(x, dout, batch)
    dbias = jnp.sum(dout, axis=tuple(range(batch)), dtype=jnp.float32) if has_bias else None
    return dx.astype(dtype), dw.astype(w.dtype), dbias


_linear.defvjp(_forward, _backward)


def _gathered(w, dtype, axes):
    """Returns the weight in the compute dtype, its "embed" axis whole.

    Left to itself XLA passes a weight that is split along a contracted axis around a ring of devices, and adds every
    part's float32 product to the sum in memory: on TPUs that is bound by memory. Other axes stay split.
    """
    w = w.astype(dtype)
    return w if axes is None else constrain(w, *(None if axis == "embed" else axis for axis in axes))


def _dot(a, b, contract):
    return lax.dot_general(a, b, (contract, ((), ())), precision=precision(a.dtype), preferred_element_type=jnp.float32)


def transpose_minor(x: Float[Array, "*batch m n"]) -> Float[Array, "*batch n m"]:
    """Swaps the last two axes; on a CPU the bytes of a bfloat16 array really move.

    XLA's CPU backend has a fast bfloat16 product only for operands whose contracted axis is the minor one
    of the left and the major one of the right; any other is upcast to float32 first, 5x slower. A plain
    transpose does not help, since layout assignment turns it into a relabelling of the same bytes: so the
    layout is pinned. GPU and TPU products take either order as it is. Over several devices nothing is pinned, since
    XLA would gather the whole array first.
    """
    if x.dtype == jnp.float32 or is_sharded():
        return x.swapaxes(-1, -2)
    layout = Layout(major_to_minor=tuple(range(x.ndim)))
    return by_platform(
        x, cpu=lambda x: with_layout_constraint(x.swapaxes(-1, -2), layout), default=lambda x: x.swapaxes(-1, -2)
    )


def weight_gradient(
    x: Float[Array, "*batch *inputs"], dout: Float[Array, "*batch *outputs"], batch: int
) -> Float[Array, "*inputs *outputs"]:
    """Returns the float32 sum over the first `batch` axes of the outer products x ⊗ dout."""
    count = math.prod(x.shape[:batch])
    rows, columns = x.reshape(count, -1), dout.reshape(count, -1)
    product = _outer if x.dtype == jnp.float32 else functools.partial(by_platform, cpu=_outer_on_cpu, default=_outer)
    return product(rows, columns).reshape(*x.shape[batch:], *dout.shape[batch:])


def _outer(x: Float[Array, "n inputs"], dout: Float[Array, "n outputs"]) -> Float[Array, "inputs outputs"]:
    return _dot(x, dout, ((0,), (0,)))


def _outer_on_cpu(x: Float[Array, "n inputs"], dout: Float[Array, "n outputs"]) -> Float[Array, "inputs outputs"]:
    """Computes `_outer` with the narrower operand transposed (see `transpose_minor`)."""
    if x.shape[1] <= dout.shape[1]:
        return _dot(transpose_minor(x), dout, ((1,), (0,)))
    out = _dot(transpose_minor(dout), x, ((1,), (0,)))
    return lax.optimization_barrier(out).T  # else XLA would turn the product around again
