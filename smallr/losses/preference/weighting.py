"""Computes weights of tokens and of pairs from per-token values of packed rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from smallr.losses.logprobs import completion_sums


def beyond_shared_length(
    completion: Int[Array, "B N"], scored: Array, lengths: Float[Array, "B 2 P"]
) -> Float[Array, "B N"]:
    """Gives 1 for tokens of a pair's longer completion behind the length of the shorter, else 0.

    Args:
      completion: `s * P + p` of each scored position; those of a completion are neighbours and in order.
      scored: whether a scored position is used.
      lengths: scored tokens of each completion.

    LD-DPO: Liu et al., arXiv 2409.06411, section 4: these tokens' log-probs count alpha, those before them 1.
    """
    positions, examples = completion.shape[1], lengths.shape[2]
    member = (completion[..., None] == jnp.arange(2 * examples)) & scored[..., None]
    index = jnp.arange(positions)[:, None]
    first = jnp.min(jnp.where(member, index, positions), axis=1)
    shared = jnp.tile(jnp.min(lengths, axis=1), (1, 2))
    tail = index >= first[:, None] + shared[:, None]
    return jnp.any(member & tail, axis=-1).astype(jnp.float32)


def likelihood_weight(
    logps: Float[Array, "B N"],
    log_sum_p2: Float[Array, "B N"],
    completion: Int[Array, "B N"],
    scored: Array,
    lengths: Float[Array, "B 2 P"],
) -> Float[Array, "B P"]:
    """Returns w(x, y_w) w(x, y_l) with w = exp(mean over tokens of log pi(y_t) - log sum_v pi(v)^2), a constant.

    WPO: Zhou et al., arXiv 2406.11827, equation 2 with the sampled alignment of its section 3.2: pairs that the policy is
    likely to write count more; a token as likely as one sampled from the policy is on average leaves w as it is.

    Args:
      logps: log pi(y_t) of each scored position.
      log_sum_p2: log sum_v pi(v)^2 of each scored position.
      completion: as in `beyond_shared_length`.
      scored: likewise.
      lengths: likewise.
    """
    aligned = completion_sums(logps - log_sum_p2, completion, scored, 2, lengths.shape[2])
    means = aligned / jnp.maximum(lengths, 1.0)
    return jax.lax.stop_gradient(jnp.exp(jnp.sum(means, axis=1)))
