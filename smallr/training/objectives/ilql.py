"""Learns values of tokens from logged completions with rewards (implicit language Q-learning)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from smallr.core.errors import UserError
from smallr.data.batch import Batch
from smallr.losses import completion_sums, head_scores
from smallr.losses.ilql import TokenValues, ilql_terms
from smallr.models.decoder import Decoder
from smallr.models.heads import Heads, QHeads
from smallr.training.forward import scored_states
from smallr.training.objectives.base import Fields, Objective, Summariser

REWARD = "reward"  # the column of `config.data.token_columns` that has the rewards


def token_values(heads: Heads, states: Float[Array, "B N D"], target: Int[Array, "B N"], chunk: int) -> TokenValues:
    """Computes what ILQL needs of each token; the vocabulary is walked once, for all Q heads side by side.

    Args:
      heads: a value head, Q heads, and a target copy or none.
      states: hidden states before the tokens.
      target: the tokens.
      chunk: see `losses.logprobs.head_scores`.
    """
    scores = head_scores(heads.q.units(states), heads.q.table[...], target, chunk=chunk)
    target_q = _target_q(heads.target_q, states, target) if hasattr(heads, "target_q") else scores.logits
    return TokenValues(scores.logits, scores.log_sum_exp, target_q, heads.value(states)[0])


def _target_q(heads: QHeads, states: Float[Array, "B N D"], target: Int[Array, "B N"]) -> Float[Array, "H B N"]:
    """Computes Q' of the targets alone: of the copy nothing but the rows of these tokens is read."""
    units = lax.stop_gradient(heads.units(states))
    rows = heads.table[...][:, target].astype(units.dtype)
    return jnp.einsum("hbnw,hbnw->hbn", units, rows, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Ilql(Objective):
    """Computes ILQL on `config.heads`: the mean over all scored tokens of L_Q + L_V + conservative_weight L_CQL.

    The rows are of the kind `completions`, with the column `reward` among `config.data.token_columns`. The decoder below
    the heads is trained too, unless `config.freeze` keeps it as it is; then the policy that was trained before shares it.

    Attributes:
      gamma: discount of a token, in [0, 1].
      tau: expectile of V, in (0, 1).
      conservative_weight: of L_CQL.
      as_released: whether the three terms are those of the released code, see `losses.ilql`.
    """

    any_completions: ClassVar[bool] = True

    gamma: float = 0.999
    tau: float = 0.9
    conservative_weight: float = 0.01
    as_released: bool = False

    @classmethod
    def from_fields(cls, node: Mapping) -> Ilql:
        """Makes the objective from `config.objective`."""
        fields = Fields(node, "objective ilql")
        fields.take("name")
        objective = cls(**{field.name: fields.take(field.name) for field in dataclasses.fields(cls)})
        fields.finish()
        return objective

    @property
    def whole_step(self) -> str:
        """Says that the released conservative term is a mean over a whole step's positions."""
        return (
            "config.objective.as_released takes the mean of L_CQL over all positions of a step"
            if self.as_released
            else ""
        )

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise UserError(f"config.objective.gamma: {self.gamma} is not in [0, 1]")
        if not 0 < self.tau < 1:
            raise UserError(f"config.objective.tau: {self.tau} is not between 0 and 1")
        if not (np.isfinite(self.conservative_weight) and self.conservative_weight >= 0):
            raise UserError(
                f"config.objective.conservative_weight: {self.conservative_weight} must be a finite number >= 0"
            )

    def forward(self, decoder: Decoder, batch: Batch, chunk: int) -> TokenValues:
        """Runs the decoder and its heads.

        Raises:
          UserError: heads are missing.
        """
        heads = getattr(decoder, "heads", None)
        if not (hasattr(heads, "value") and hasattr(heads, "q")):
            raise UserError(
                "objective ilql needs a value head and Q heads: set config.heads.values=1 and config.heads.q=2"
            )
        return token_values(heads, scored_states(decoder, batch), batch.target, chunk)

    def denominator(self, batch: Batch) -> Float[Array, ""]:
        """Counts the scored tokens."""
        return jnp.sum(batch.role > 0).astype(jnp.float32)

    def __call__(self, scores: TokenValues, batch: Batch, reference: None):
        """Returns the summed loss, and sums over the tokens of each example.

        Raises:
          UserError: the rows have no rewards.
        """
        if REWARD not in batch.token_columns:
            raise UserError(
                f"objective ilql needs a reward for each scored token: rows of the kind completions with the column {REWARD!r}, "
                f"and config.data.token_columns=('{REWARD}',)"
            )
        used, reward = batch.role > 0, batch.token_columns[REWARD]
        options = {"gamma": self.gamma, "tau": self.tau, "as_released": self.as_released}
        terms = ilql_terms(scores, reward, batch.completion, used, **options)
        loss = terms.q + terms.value + self.conservative_weight * terms.conservative
        tokens = {
            "loss": loss,
            "denominator": jnp.ones_like(loss),
            "loss_q": terms.q,
            "loss_value": terms.value,
            "loss_conservative": terms.conservative,
            "reward": reward,
            "q": jnp.min(scores.q, axis=0),
            "value": scores.value,
        }
        completions, examples = batch.completion_columns["weight"].shape[1], batch.example.shape[1]
        sums = {
            name: jnp.sum(completion_sums(x, batch.completion, used, completions, examples), axis=1)
            for name, x in tokens.items()
        }
        return jnp.sum(loss), sums

    def summariser(self) -> Summariser:
        """Averages the terms, rewards and values over tokens; `advantage` is the mean of min Q - V of the data's tokens."""

        def summarise(values: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]) -> dict[str, float]:
            count = max(float(values["denominator"].sum()), 1.0)
            names = ("loss_q", "loss_value", "loss_conservative", "reward", "q", "value")
            means = {name: float(values[name].sum()) / count for name in names}
            return means | {"advantage": means["q"] - means["value"]}

        return summarise
