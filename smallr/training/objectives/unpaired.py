"""Trains by KTO: single completions, each labelled desirable or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from smallr.core.errors import UserError
from smallr.data.batch import Batch
from smallr.losses import TokenScores, completion_sums
from smallr.losses.preference import kl_estimate, kto
from smallr.training.objectives.base import OF_REFERENCE, Fields, Objective, Summariser, check_normalise
from smallr.training.summaries import unpaired_summary


@dataclasses.dataclass(frozen=True)
class Unpaired(Objective):
    """Computes KTO on rows of kind `unpaired`.

    The second completion of an example is a completion of another prompt; its log-ratio feeds the KL estimate.

    Attributes:
      beta: strength; a row's own `beta` column comes first.
      desirable_weight: lambda_D.
      undesirable_weight: lambda_U.
      reference: cached | live.
      normalise: as in `Objective`.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    reference: str = "cached"
    normalise: str = "step"
    completion_names: ClassVar[tuple[str, ...]] = ("completion", "mismatched")
    whole_step: ClassVar[str] = "KTO estimates the KL from all rows of a step"

    @classmethod
    def from_fields(cls, node: Mapping) -> Unpaired:
        """Makes the objective from `config.objective`."""
        fields = Fields(node, "objective unpaired")
        fields.take("name")
        objective = cls(**{field.name: fields.take(field.name) for field in dataclasses.fields(cls)})
        fields.leave(*OF_REFERENCE)
        fields.finish()
        return objective

    def __post_init__(self) -> None:
        check_normalise(self.normalise)
        if self.reference not in ("cached", "live"):
            raise UserError(
                f"config.objective.reference: {self.reference!r} is neither 'cached' nor 'live'; KTO needs the reference "
                "for mismatched completions too"
            )
        if hasattr(self.beta, "keys"):
            raise UserError(
                "config.objective.beta: a beta of each gap has no meaning without pairs. Set one number, or give rows a "
                "column `beta`"
            )
        for name in ("beta", "desirable_weight", "undesirable_weight"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(f"config.objective.{name}: {getattr(self, name)} must be a finite number >= 0")

    def columns(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Makes the columns `label` and `beta`.

        Raises:
          UserError: rows of another kind.
        """
        if "label" not in given:
            raise UserError("objective unpaired needs labelled completions: set config.data.kind=unpaired")
        own = np.asarray(given["beta"], np.float32)
        return {
            "label": np.asarray(given["label"], np.float32),
            "beta": np.where(np.isnan(own), np.float32(self.beta), own),
        }

    def __call__(self, scores: TokenScores, batch: Batch, reference: TokenScores | None):
        """Returns the sum of the rows' losses, and the log-ratio and reward of each."""
        weight, examples, scored = batch.columns["weight"], batch.example.shape[1], batch.role > 0
        policy = completion_sums(scores.logps, batch.completion, scored, 2, examples)
        if reference is None:
            base = jnp.stack([batch.columns[f"ref_{name}"] for name in self.completion_names], axis=1)
        else:
            base = completion_sums(reference.logps, batch.completion, scored, 2, examples)
        ratio = policy - base
        kl = kl_estimate(ratio[:, 1], weight)
        label, beta = batch.columns["label"], batch.columns["beta"]
        losses = kto(ratio[:, 0], kl, label, beta, self.desirable_weight, self.undesirable_weight)
        values = {
            "loss": losses,
            "denominator": weight,
            "label": label,
            "ratio": ratio[:, 0],
            "reward": beta * ratio[:, 0],
            "kl_estimate": jnp.broadcast_to(kl, losses.shape),
            **{f"score_{name}": policy[:, i] for i, name in enumerate(self.completion_names)},
        }
        return jnp.sum(losses * weight), values

    def summariser(self) -> Summariser:
        """Computes the rewards of both classes, accuracy and KL."""
        return lambda values, columns: unpaired_summary(values, columns)
