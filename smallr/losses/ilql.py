"""Computes the loss of implicit language Q-learning (ILQL) from values of tokens.

Snell et al., arXiv 2206.11871, after implicit Q-learning (Kostrikov et al., arXiv 2110.06169); the weights are those of
Tarasov and Shridhar, arXiv 2402.01812. The state of a token is the text before it and the token is the action. For token t
of a completion, with its reward r_t, and d_t = 1 for the last one:

    L_Q   = mean over heads i of (Q_i(s_t, a_t) - [r_t + gamma (1 - d_t) V(s_{t+1})])^2, no gradient through V
    L_V   = |tau - 1[A < 0]| A^2, A = min_i Q'_i(s_t, a_t) - V(s_t), no gradient through the target copy Q'
    L_CQL = mean over heads i of logsumexp_a Q_i(s_t, a) - Q_i(s_t, a_t)

The code that was released with the second paper differs in three terms, which `as_released` reproduces: the sign before
gamma is minus, a gradient runs through V(s_{t+1}), and L_CQL is the mean over all positions, unused ones too.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


class TokenValues(NamedTuple):
    """Holds what the heads say of each scored token, float32.

    Attributes:
      q: Q_i(s_t, a_t) of each Q head.
      q_log_sum_exp: log sum_a exp Q_i(s_t, a).
      target_q: Q'_i(s_t, a_t) of the target copy; without a copy it is `q`.
      value: V(s_t).
    """

    q: Float[Array, "H B N"]
    q_log_sum_exp: Float[Array, "H B N"]
    target_q: Float[Array, "H B N"]
    value: Float[Array, "B N"]


class IlqlTerms(NamedTuple):
    """Holds the three terms of the loss for each scored token, float32 [B, N], 0 in unused positions."""

    q: Float[Array, "B N"]
    value: Float[Array, "B N"]
    conservative: Float[Array, "B N"]


def next_values(
    value: Float[Array, "B N"], completion: Int[Array, "B N"], used: Bool[Array, "B N"]
) -> Float[Array, "B N"]:
    """Returns V(s_{t+1}): the value at the next scored position of the same completion, 0 after its last one.

    Completions lie side by side in a row, so the next position may be another completion's; that one never counts.

    Args:
      value: V(s_t).
      completion: index of each position's completion in its row.
      used: whether a position is scored.
    """
    same = (completion[:, 1:] == completion[:, :-1]) & used[:, 1:] & used[:, :-1]
    return jnp.pad(jnp.where(same, value[:, 1:], 0.0), ((0, 0), (0, 1)))


def ilql_terms(
    values: TokenValues,
    reward: Float[Array, "B N"],
    completion: Int[Array, "B N"],
    used: Bool[Array, "B N"],
    *,
    gamma: float,
    tau: float,
    as_released: bool = False,
) -> IlqlTerms:
    """Computes the three terms of each token; see the module.

    Args:
      values: of the heads.
      reward: r_t.
      completion: index of each position's completion in its row.
      used: whether a position is scored.
      gamma: discount of a token.
      tau: expectile; 0.5 makes V the mean of Q', towards 1 its maximum over the data's actions.
      as_released: whether the terms are those of the released code.
    """
    following = next_values(values.value, completion, used)
    bootstrap = -gamma * following if as_released else gamma * lax.stop_gradient(following)
    target = reward + bootstrap
    q_term = jnp.mean(jnp.square(values.q - target), axis=0)
    advantage = jnp.min(lax.stop_gradient(values.target_q), axis=0) - values.value
    value_term = jnp.abs(tau - (advantage < 0)) * jnp.square(advantage)
    conservative = jnp.mean(values.q_log_sum_exp - values.q, axis=0)
    if as_released:
        conservative = jnp.broadcast_to(jnp.mean(conservative), conservative.shape)
    return IlqlTerms(*(jnp.where(used, term, 0.0) for term in (q_term, value_term, conservative)))
