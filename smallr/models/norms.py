"""Normalises activations in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from smallr.models.config import DecoderConfig
from smallr.models.parameters import param


class RMSNorm(nnx.Module):
    """Computes x / rms(x) * scale over the last axes, in float32 (arXiv 1910.07467, eq. 4).

    Args:
      shape: of the axes that are normed together.
      axes: their logical names.
      eps: added to the mean square.
      offset: added to the scale; Gemma stores the difference from 1.
      layers: as in `param`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        eps: float,
        offset: float = 0.0,
        layers: tuple[int, ...] = (),
    ):
        self.eps, self.offset, self.ndim = eps, offset, len(shape)
        self.scale = param(jnp.zeros if offset else jnp.ones, shape, axes, layers)

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Returns the normed activations, in x's dtype."""
        wide = x.astype(jnp.float32)
        square = jnp.mean(jnp.square(wide), axis=tuple(range(-self.ndim, 0)), keepdims=True)
        scale = self.scale[...] + self.offset
        return (wide * jax.lax.rsqrt(square + self.eps) * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    """Computes (x - mean(x)) / std(x) * scale + bias, in float32 (arXiv 1607.06450, eq. 4)."""

    def __init__(self, dim: int, eps: float, layers: tuple[int, ...] = ()):
        self.eps = eps
        self.scale = param(jnp.ones, (dim,), (None,), layers)
        self.bias = param(jnp.zeros, (dim,), (None,), layers)

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Returns the normed activations, in x's dtype."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


def norm(config: DecoderConfig, layers: tuple[int, ...] = ()) -> RMSNorm | LayerNorm:
    """Returns the family's norm of the residual stream."""
    if config.norm == "layer":
        return LayerNorm(config.d_model, config.norm_eps, layers)
    return RMSNorm((config.d_model,), (None,), config.norm_eps, config.norm_offset, layers)
