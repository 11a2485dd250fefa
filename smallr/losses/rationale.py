"""Computes the likelihood of answer and rationale in either order, told apart by roles.

Chen et al., arXiv 2404.09170: pre-thinking trains question -> rationale -> answer, post-thinking trains
question -> answer -> rationale. The order is the data layer's business; here a token only has a role, so
both orders, plain SFT and answer-only training are one weighted negative log-likelihood.
The weights, the three normalisations and `amplify` are smallr's own choices, not the paper's.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from smallr.data.batch import ROLE_ANSWER, ROLE_RATIONALE
from smallr.losses.logprobs import completion_sums

Normalisation = Literal["sum", "token_mean", "sample_mean"]


class RoleNll(NamedTuple):
    """Holds negative log-likelihood (nats) and token counts of each example by role; all float32 [B, P]."""

    answer: Float[Array, "B P"]
    rationale: Float[Array, "B P"]
    answer_tokens: Float[Array, "B P"]
    rationale_tokens: Float[Array, "B P"]


def role_nll(
    logps: Float[Array, "B N"],
    completion: Int[Array, "B N"],
    role: Int[Array, "B N"],
    examples: int,
    completions: int = 1,
) -> RoleNll:
    """Sums -logps over the answer and over the rationale of each example, all its completions together."""

    def total(values: Float[Array, "B N"], wanted: int) -> Float[Array, "B P"]:
        return jnp.sum(completion_sums(values, completion, role == wanted, completions, examples), axis=1)

    ones = jnp.ones_like(logps)
    return RoleNll(
        answer=total(-logps, ROLE_ANSWER),
        rationale=total(-logps, ROLE_RATIONALE),
        answer_tokens=total(ones, ROLE_ANSWER),
        rationale_tokens=total(ones, ROLE_RATIONALE),
    )


def rationale_loss(
    nll: RoleNll, *, answer_weight: float = 1.0, rationale_weight: float = 1.0, normalisation: Normalisation = "sum"
) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    """Returns numerator and denominator of the loss for each example; the loss is sum(numerators) / sum(denominators).

    * `sum`: the weighted likelihood of the whole target, averaged over examples.
    * `token_mean`: averaged over all scored tokens of the step; a long rationale dilutes the answer.
    * `sample_mean`: the weighted mean over each example's own tokens, averaged over examples.

    Returns:
      (numerators, denominators), both [B, P]; the denominators depend on the data alone.
    """
    numerator = answer_weight * nll.answer + rationale_weight * nll.rationale
    tokens = answer_weight * nll.answer_tokens + rationale_weight * nll.rationale_tokens
    exists = (nll.answer_tokens + nll.rationale_tokens > 0).astype(jnp.float32)
    if normalisation == "sum":
        return numerator, exists
    if normalisation == "token_mean":
        return numerator, tokens
    if normalisation == "sample_mean":
        return numerator / jnp.maximum(tokens, 1e-9), exists
    raise ValueError(f"normalisation {normalisation!r} must be one of: sum, token_mean, sample_mean")


def amplification(nll: RoleNll, clip: float) -> Float[Array, "B P"]:
    """Computes the weight of each example: its rationale NLL over the batch's mean, clipped to [1/clip, clip].

    No gradient flows through the weight. Examples without a rationale have weight 1.
    """
    has_rationale = nll.rationale_tokens > 0
    mean = jnp.sum(nll.rationale) / jnp.maximum(jnp.sum(has_rationale), 1)
    relative = jnp.clip(nll.rationale / jnp.maximum(mean, 1e-9), 1.0 / clip, clip)
    return jax.lax.stop_gradient(jnp.where(has_rationale, relative, 1.0))
