"""Rotary position embedding (RoFormer, arXiv 2104.09864, eq. 34) in the half-split layout, with its scalings."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from smallr.errors import UserError
from smallr.models.config import DecoderConfig, RopeScaling


def rope_frequencies(config: DecoderConfig) -> Float[np.ndarray, "half"]:
    """Angle per position of each of the head_dim / 2 rotary pairs, float32."""
    plain = config.rope_theta ** -(np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        scaled = plain
    elif scaling.kind == "linear":
        scaled = plain / scaling.factor
    elif scaling.kind == "llama3":
        scaled = _llama3(plain, scaling)
    elif scaling.kind == "yarn":
        scaled = _yarn(plain, scaling, config)
    else:
        if len(scaling.factors) != len(plain):
            raise UserError(
                f"rope_scaling has {len(scaling.factors)} factors, head_dim {config.head_dim} needs {len(plain)}"
            )
        scaled = plain / np.asarray(scaling.factors, np.float64)
    return scaled.astype(np.float32)


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Llama 3.1: slow frequencies are divided, fast ones kept, a linear blend between (arXiv 2407.21783, 3.4.2)."""
    turns = scaling.original_max_positions * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (keep + (1 - keep) / scaling.factor)


def _yarn(plain: np.ndarray, scaling: RopeScaling, config: DecoderConfig) -> np.ndarray:
    """YaRN (arXiv 2309.00071, eq. 17-23): a ramp over the pair index between the two rotation counts."""

    def pair_with(rotations: float) -> float:
        context = scaling.original_max_positions
        return config.head_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    span = high - low if high != low else 0.001  # the published code's guard against an empty ramp
    interpolate = np.clip((np.arange(len(plain)) - low) / span, 0.0, 1.0)
    return plain * (1 - interpolate) + plain / scaling.factor * interpolate


def rope_tables(
    positions: Int[Array, "B T"], config: DecoderConfig
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """float32 cos and sin of every position's angles, times yarn's attention factor."""
    angles = positions.astype(jnp.float32)[..., None] * rope_frequencies(config)
    factor = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def apply_rope(
    x: Float[Array, "B T heads head_dim"], cos: Float[Array, "B T half"], sin: Float[Array, "B T half"]
) -> Float[Array, "B T heads head_dim"]:
    """Rotates pair (x[i], x[i + head_dim / 2]) by its angle, in float32; the result has x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
