"""Trains on pairs with any loss of the preference family, with one beta, or a beta per pair (CogPO)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smallr.core.errors import UserError
from smallr.data.batch import Batch
from smallr.data.rows import GAPS
from smallr.losses import TokenScores, completion_sums
from smallr.losses.preference import Divergence, Pairs, WeightedLoss, beyond_shared_length, likelihood_weight, parse
from smallr.training.objectives.base import OF_REFERENCE, Fields, Objective, Summariser, check_normalise
from smallr.training.summaries import preference_summary

WEIGHTINGS = ("none", "wpo")


@dataclasses.dataclass(frozen=True)
class Preference(Objective):
    """Minimises a loss of pairs.

    Attributes:
      loss: a name in `losses.preference.LOSSES`, or a weighted sum of some.
      betas: one number for all pairs, or a number for each gap (CogPO); with gaps, a pair's own `beta` column comes
        first. None for a loss without beta.
      reference: cached, live, columns or none (`references.ReferenceOptions`). A loss that needs one can do without: its
        log-ratios are then log-probs. A loss that needs none may have one: the KL to it is reported.
      values: of the loss's own fields; those left out have their defaults.
      divergence: from the reference, see `losses.preference.divergence`.
      ld_alpha: weight of tokens behind the length of the shorter completion (LD-DPO); 1: all count alike.
      weighting: wpo multiplies each pair's loss by how likely the policy is to write it; none.
      normalise: as in `Objective`.
    """

    loss: str
    betas: float | tuple[float, float, float] | None
    reference: str = "cached"
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    divergence: str = "reverse_kl"
    ld_alpha: float = 1.0
    weighting: str = "none"
    normalise: str = "step"
    completion_names: ClassVar[tuple[str, ...]] = ("chosen", "rejected")

    @classmethod
    def from_fields(cls, node: Mapping) -> Preference:
        """Makes the objective from `config.objective`."""
        loss = node["loss"]
        mix, fields = parse(loss), Fields(node, f"loss {loss}")
        for name in ("name", "loss"):
            fields.take(name)
        betas = None
        if mix.beta or "beta" in node:
            beta = fields.take("beta")
            per_gap = hasattr(beta, "keys")
            betas = tuple(float(beta[gap]) for gap in GAPS) if per_gap else float(beta)
        objective = cls(
            loss,
            betas,
            fields.take("reference"),
            values={name: float(fields.take(name)) for name in mix.fields},
            divergence=fields.take("divergence"),
            ld_alpha=float(fields.take("ld_alpha")),
            weighting=fields.take("weighting"),
            normalise=fields.take("normalise"),
        )
        fields.leave(*OF_REFERENCE)
        fields.finish()
        return objective

    def __post_init__(self) -> None:
        check_normalise(self.normalise)
        self._weighted_loss.check(self._values)
        self._check_betas()
        divergence = self._divergence
        if not divergence.is_default and self._weighted_loss.no_divergence:
            raise UserError(
                f"config.objective.divergence={self.divergence}: the loss {self._weighted_loss.no_divergence} is no function of a "
                "difference of rewards, in which alone the normaliser of another divergence cancels"
            )
        if not 0 <= self.ld_alpha <= 1:
            raise UserError(f"config.objective.ld_alpha: {self.ld_alpha} is not in [0, 1]")
        if self.ld_alpha < 1 and self.reference == "columns":
            raise UserError(
                "config.objective.ld_alpha below 1 weighs the reference's tokens too, but columns hold sums: set "
                "config.objective.reference=cached or live"
            )
        if self.weighting not in WEIGHTINGS:
            raise UserError(f"config.objective.weighting: {self.weighting!r} must be one of: {', '.join(WEIGHTINGS)}")
        if self.weighting != "none" and self._weighted_loss.no_beta_per_pair:
            raise UserError(
                f"config.objective.weighting={self.weighting}: a weight of each pair has no meaning, since "
                f"{self._weighted_loss.no_beta_per_pair}"
            )

    def _check_betas(self) -> None:
        if (self.betas is None) == self._weighted_loss.beta:
            raise UserError(
                f"config.objective.beta: the loss {self.loss} needs it"
                if self._weighted_loss.beta
                else f"config.objective.beta: the loss {self.loss} has no beta, neither one nor one per pair: nothing in it "
                "scales a reward. Remove the field, e.g. with smallr train preference:LOSS"
            )
        if isinstance(self.betas, tuple) and self._weighted_loss.no_beta_per_pair:
            raise UserError(
                f"config.objective.beta: a beta of each gap has no meaning with the loss {self.loss}, since "
                f"{self._weighted_loss.no_beta_per_pair}. Set one number, or take another loss"
            )
        for beta in [] if self.betas is None else np.atleast_1d(self.betas):
            if not (np.isfinite(beta) and beta >= 0):
                raise UserError(f"config.objective.beta: {beta} must be a finite number >= 0")
            if beta == 0 and self._weighted_loss.positive_beta:
                raise UserError(f"config.objective.beta: the loss {self.loss} divides by beta, which must not be 0")

    @functools.cached_property
    def _weighted_loss(self) -> WeightedLoss:
        return parse(self.loss)

    @functools.cached_property
    def _divergence(self) -> Divergence:
        return Divergence.parse(self.divergence)

    @property
    def _values(self) -> dict[str, float]:
        return {name: field.default for name, field in self._weighted_loss.fields.items()} | dict(self.values)

    @property
    def log_sum_p2(self) -> bool:
        """Is true for WPO, which compares with the average probability of a sampled token."""
        return self.weighting == "wpo"

    @property
    def whole_step(self) -> str:
        """Says why the loss needs a whole step, if it does."""
        name = self._weighted_loss.whole_step
        return name and f"the loss {name} compares the pairs of a whole step"

    def columns(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Makes the `beta` of each pair."""
        if self.betas is None:
            return {}
        gap = np.asarray(given["gap"]).astype(int)
        if not isinstance(self.betas, tuple):
            return {"beta": np.full(gap.shape, self.betas, np.float32)}
        own = np.asarray(given["beta"], np.float32)
        beta = np.where(np.isnan(own), np.asarray([*self.betas, np.nan], np.float32)[gap], own)
        without = np.flatnonzero(np.isnan(beta))
        if without.size:
            raise UserError(
                f"a beta per gap needs a `gap` ({', '.join(GAPS)}) or a `beta` in every pair; {without.size} pairs "
                f"have neither, e.g. {without[:5].tolist()}. Map the column with config.data.columns.gap, "
                "or use the config dpo for one beta."
            )
        if self._weighted_loss.positive_beta and (zero := np.flatnonzero(beta == 0)).size:
            raise UserError(
                f"the loss {self.loss} divides by beta, but {zero.size} pairs have beta 0, e.g. {zero[:5].tolist()}"
            )
        return {"beta": beta}

    def __call__(self, scores: TokenScores, batch: Batch, reference: TokenScores | None):
        """Returns the sum of the pairs' losses, and of each pair log-probs, log-ratios and rewards of both completions."""
        weight, examples, scored = batch.columns["weight"], batch.example.shape[1], batch.role > 0

        def sums(values: Float[Array, "B N"]) -> Float[Array, "B 2 P"]:
            return completion_sums(values, batch.completion, scored, 2, examples)

        lengths = sums(jnp.ones_like(scores.logps))
        counts = 1.0
        if self.ld_alpha < 1:
            counts = 1.0 - (1.0 - self.ld_alpha) * beyond_shared_length(batch.completion, scored, lengths)
        policy = sums(counts * scores.logps)
        known = self._reference_sums(batch, reference, lambda values: sums(counts * values))
        # An unused example index has beta 0, by which some losses divide.
        beta = jnp.where(weight > 0, batch.columns["beta"], 1.0) if self.betas is not None else jnp.ones_like(weight)
        base = known if known is not None and self._weighted_loss.reference else jnp.zeros_like(policy)
        pairs = Pairs(*_pair(policy), *_pair(base), *_pair(lengths), beta, weight)
        transformed = None if self._divergence.is_default else self._divergence.scored(pairs)
        losses = self._weighted_loss(pairs, self._values, transformed)
        if self.weighting == "wpo":
            losses = losses * likelihood_weight(scores.logps, scores.log_sum_p2, batch.completion, scored, lengths)
        rewards = transformed or pairs
        rewards = rewards.per_token() if self._weighted_loss.per_token else rewards
        values = {
            "loss": losses,
            "denominator": weight,
            "reward_chosen": rewards.reward_chosen,
            "reward_rejected": rewards.reward_rejected,
        }
        values |= self._named("logp", sums(scores.logps)) | self._named("score", policy)
        if known is not None:
            values |= self._named("ratio", policy - known)
        return jnp.sum(losses * weight), values

    def _reference_sums(self, batch: Batch, reference: TokenScores | None, sums) -> Float[Array, "B 2 P"] | None:
        if reference is not None:
            return sums(reference.logps)
        if self.reference == "none":
            return None
        return jnp.stack([batch.columns[f"ref_{name}"] for name in self.completion_names], axis=1)

    def _named(self, name: str, values: Float[Array, "B 2 P"]) -> dict[str, Float[Array, "B P"]]:
        return {
            f"{name}_{completion}": value
            for completion, value in zip(self.completion_names, _pair(values), strict=True)
        }

    def summariser(self) -> Summariser:
        """Computes rewards, margin, accuracy and KL, overall and per gap."""
        return lambda values, columns: preference_summary(values, columns)


def _pair(values: Float[Array, "B 2 P"]) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    return values[:, 0], values[:, 1]
