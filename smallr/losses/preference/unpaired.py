"""Defines KTO: the loss of completions that are labelled good or bad, without pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def kl_estimate(ratio: Float[Array, "*rows"], weight: Float[Array, "*rows"]) -> Float[Array, ""]:
    """Returns z_0 = max(0, mean of log pi(y'|x) - log ref(y'|x)) over completions y' of other prompts, a constant.

    KTO: Ethayarajh et al., arXiv 2402.01306, section 4.1.

    Args:
      ratio: log-ratios of mismatched completions.
      weight: 1 for a row, 0 for an unused example index.
    """
    mean = jnp.sum(jnp.where(weight > 0, ratio, 0.0)) / jnp.maximum(jnp.sum(weight), 1.0)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def kto(
    ratio: Float[Array, "*rows"],
    kl: Float[Array, ""],
    desirable: Float[Array, "*rows"],
    beta: float | Float[Array, "*rows"],
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Array, "*rows"]:
    """Returns lambda_D (1 - sigma(beta [r - z_0])) of desirable rows, lambda_U (1 - sigma(beta [z_0 - r])) of others.

    KTO: Ethayarajh et al., arXiv 2402.01306, equation 7 (lambda_y - v).

    Args:
      ratio: log pi(y|x) - log ref(y|x) of each row.
      kl: z_0.
      desirable: 1 or 0.
      beta: a scalar, or one a row.
      desirable_weight: lambda_D.
      undesirable_weight: lambda_U.
    """
    z = jnp.asarray(beta, jnp.float32) * (ratio.astype(jnp.float32) - kl)
    return jnp.where(desirable > 0, desirable_weight * jax.nn.sigmoid(-z), undesirable_weight * jax.nn.sigmoid(z))
