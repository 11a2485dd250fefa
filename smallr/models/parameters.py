"""Makes parameters: float32 masters with the names of their logical axes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

INIT_STDDEV = 0.02


def param(
    init: Callable, shape: tuple[int, ...], axes: tuple[str | None, ...], layers: tuple[int, ...] = ()
) -> nnx.Param:
    """Returns a float32 parameter, with a leading "layers" axis if `layers` gives its length."""
    return nnx.Param(init((*layers, *shape)), axes=(*("layers" for _ in layers), *axes))


def normal(rngs: nnx.Rngs) -> Callable:
    """Initialises with N(0, 0.02²)."""
    return lambda shape: INIT_STDDEV * jax.random.normal(rngs.params(), shape, jnp.float32)
