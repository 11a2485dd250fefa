"""Defines what a preference loss is given of a pair."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Pairs(NamedTuple):
    """Holds numbers of pairs; every field has one shape, e.g. [B, P], and one entry a pair.

    Attributes:
      chosen, rejected: log-prob of the completion under the policy, summed over its tokens, EOS included.
      ref_chosen, ref_rejected: likewise under the reference; zeros where there is none.
      chosen_tokens, rejected_tokens: scored tokens of each completion.
      beta: strength; unused by losses that have none.
      weight: 1 for a pair, 0 for an unused example index.
    """

    chosen: Float[Array, "*pairs"]
    rejected: Float[Array, "*pairs"]
    ref_chosen: Float[Array, "*pairs"]
    ref_rejected: Float[Array, "*pairs"]
    chosen_tokens: Float[Array, "*pairs"]
    rejected_tokens: Float[Array, "*pairs"]
    beta: Float[Array, "*pairs"]
    weight: Float[Array, "*pairs"]

    def float32(self) -> Pairs:
        """Returns all fields as float32 of one shape."""
        return Pairs(*jnp.broadcast_arrays(*(jnp.asarray(x, jnp.float32) for x in self)))

    @property
    def ratio_chosen(self) -> Float[Array, "*pairs"]:
        """Returns log pi(y_w|x) - log ref(y_w|x)."""
        return self.chosen - self.ref_chosen

    @property
    def ratio_rejected(self) -> Float[Array, "*pairs"]:
        """Returns log pi(y_l|x) - log ref(y_l|x)."""
        return self.rejected - self.ref_rejected

    @property
    def h(self) -> Float[Array, "*pairs"]:
        """Returns [log pi(y_w|x) - log ref(y_w|x)] - [log pi(y_l|x) - log ref(y_l|x)], in nats."""
        return self.ratio_chosen - self.ratio_rejected

    @property
    def reward_chosen(self) -> Float[Array, "*pairs"]:
        """Returns beta times the log-ratio."""
        return self.beta * self.ratio_chosen

    @property
    def reward_rejected(self) -> Float[Array, "*pairs"]:
        """Returns beta times the log-ratio."""
        return self.beta * self.ratio_rejected

    def per_token(self) -> Pairs:
        """Returns the same pairs with mean log-probs of a token in place of sums."""
        # An unused example index has no tokens.
        tokens_chosen, tokens_rejected = jnp.maximum(self.chosen_tokens, 1.0), jnp.maximum(self.rejected_tokens, 1.0)
        return self._replace(
            chosen=self.chosen / tokens_chosen,
            rejected=self.rejected / tokens_rejected,
            ref_chosen=self.ref_chosen / tokens_chosen,
            ref_rejected=self.ref_rejected / tokens_rejected,
        )

    def mean(self, values: Float[Array, "*pairs"]) -> Float[Array, ""]:
        """Averages over the pairs, unused example indices left out."""
        return jnp.sum(jnp.where(self.weight > 0, values, 0.0)) / jnp.maximum(jnp.sum(self.weight), 1.0)


def smoothed(z: Float[Array, "*pairs"], label_smoothing: float) -> Float[Array, "*pairs"]:
    """Returns -(1 - eps) log sigma(z) - eps log sigma(-z): the logistic loss with a share eps of flipped labels."""
    loss = -jax.nn.log_sigmoid(z)
    if label_smoothing:
        loss = (1.0 - label_smoothing) * loss - label_smoothing * jax.nn.log_sigmoid(-z)
    return loss
