"""Computes rotary position embeddings (RoFormer, arXiv 2104.09864, eq. 34) in the half-split layout, with their scalings."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from smallr.core.errors import UserError
from smallr.models.config import DecoderConfig, RopeScaling


def rope_frequencies(config: DecoderConfig) -> Float[np.ndarray, "half"]:
    """Returns the angle per position of each of the rotary pairs, float32; longrope's are those of short examples."""
    plain = _plain(config.rope_theta, config.rotary)
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
        scaled = _divided(plain, scaling.factors, config)
    return scaled.astype(np.float32)


def _plain(theta: float, dim: int) -> np.ndarray:
    return theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)


def _divided(plain: np.ndarray, factors: tuple[float, ...], config: DecoderConfig) -> np.ndarray:
    if len(factors) != len(plain):
        rotary = f"head_dim {config.head_dim}" if config.rotary == config.head_dim else f"rotary_dim {config.rotary}"
        raise UserError(f"rope_scaling has {len(factors)} factors, {rotary} needs {len(plain)}")
    return plain / np.asarray(factors, np.float64)


def _llama3(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Scales as Llama 3.1: slow frequencies are divided, fast ones kept, a linear blend between (arXiv 2407.21783, 3.4.2)."""
    turns = scaling.original_max_positions * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (keep + (1 - keep) / scaling.factor)


def _yarn(plain: np.ndarray, scaling: RopeScaling, config: DecoderConfig) -> np.ndarray:
    """Scales by YaRN (arXiv 2309.00071, eq. 17-23): a ramp over the pair index between the two rotation counts."""

    def pair_with(rotations: float) -> float:
        context = scaling.original_max_positions
        return config.rotary * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary - 1)
    span = high - low if high != low else 0.001  # the published code's guard against an empty ramp
    interpolate = np.clip((np.arange(len(plain)) - low) / span, 0.0, 1.0)
    return plain * (1 - interpolate) + plain / scaling.factor * interpolate


def layer_ropes(config: DecoderConfig) -> tuple[str, ...]:
    """Says how each layer rotates: "main", "local" (the windowed layers where they have their own base) or "none"."""
    local = [config.local_rope_theta is not None and window is not None for window in config.layer_windows]
    return tuple(
        "none" if config.learned_positions or layer in config.nope_layers else "local" if local[layer] else "main"
        for layer in range(config.num_layers)
    )


def rope_tables(
    positions: Int[Array, "B T"], config: DecoderConfig, kind: str = "main", longest: Int[Array, "B T"] | None = None
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Computes float32 cos and sin of every position's angles, times the scaling's attention factor.

    Args:
      positions: position within the example.
      config: the base and scaling.
      kind: as in `layer_ropes`; "none" is the rotation by 0.
      longest: the largest position of each token's example; None where whole examples stand in the row.
    """
    scaling = config.rope_scaling if kind == "main" else None
    if kind == "none":
        frequencies = np.zeros(config.rotary // 2, np.float32)
    elif kind == "local":
        frequencies = _plain(config.local_rope_theta, config.rotary).astype(np.float32)
    else:
        frequencies = rope_frequencies(config)
    if scaling is not None and scaling.kind == "longrope":
        long = _divided(_plain(config.rope_theta, config.rotary), scaling.long_factors, config).astype(np.float32)
        longest = _longest(positions) if longest is None else longest
        is_long = (longest >= scaling.original_max_positions)[..., None]
        frequencies = jnp.where(is_long, long, frequencies)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    factor = scaling.attention_factor if scaling else 1.0
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def _longest(positions: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Returns the largest position of each token's example; an example begins at position 0."""
    example = jnp.cumsum(positions == 0, axis=1)

    def row(positions, example):
        return jax.ops.segment_max(positions, example, num_segments=len(positions) + 1)[example]

    return jax.vmap(row)(positions, example)


def apply_rope(
    x: Float[Array, "B T heads head_dim"], cos: Float[Array, "B T half"], sin: Float[Array, "B T half"]
) -> Float[Array, "B T heads head_dim"]:
    """Rotates pair (x[i], x[i + half]) by its angle, in float32; dimensions from 2 half on stay. In x's dtype."""
    half = cos.shape[-1]
    first, second, rest = jnp.split(x.astype(jnp.float32), [half, 2 * half], axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*rotated, *([rest] if rest.shape[-1] else [])], axis=-1).astype(x.dtype)
