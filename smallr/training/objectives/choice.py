"""Learns which of two tokens comes next: cross-entropy between the two alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from smallr.data.batch import Batch
from smallr.losses import TokenScores, completion_sums
from smallr.training.objectives.base import Fields, Objective, Summariser
from smallr.training.summaries import choice_summary


@dataclasses.dataclass(frozen=True)
class Choice(Objective):
    """Minimises -log of the right choice's share of the probability of both.

    With log-probs l0 and l1 of the two tokens after the same prompt it is log(1 + exp(∓(l1 - l0))): what the vocabulary's
    other tokens have cancels.

    Attributes:
      balanced: weigh the rows of each label so that both have the same total, and the mean weight is 1; a set with one
        label alone has weights 1.
    """

    balanced: bool = True
    completion_names: ClassVar[tuple[str, ...]] = ("first", "second")

    @classmethod
    def from_fields(cls, node: ConfigDict) -> Choice:
        """Makes the objective from `config.objective`."""
        fields = Fields(node, "objective choice")
        fields.take("name")
        objective = cls(balanced=bool(fields.take("balanced")))
        fields.finish()
        return objective

    def columns(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Makes the columns `label`, and `choice_weight`, which follows from how often the label occurs in this set."""
        label = np.asarray(given["label"], np.float32)
        share = np.where(label > 0, label.mean(), 1 - label.mean())
        is_mixed = 0 < label.mean() < 1
        weight = 0.5 / share if self.balanced and is_mixed else np.ones_like(label)
        return {"label": label, "choice_weight": weight.astype(np.float32)}

    def denominator(self, batch: Batch) -> Float[Array, ""]:
        """Returns the sum of the weights."""
        return jnp.sum(batch.columns["choice_weight"])

    def __call__(self, scores: TokenScores, batch: Batch, reference: TokenScores | None):
        """Returns the weighted sum of losses, and of each example its `logit`, l1 - l0."""
        sums = completion_sums(scores.logps, batch.completion, batch.role > 0, 2, batch.example.shape[1])
        logit, weight = sums[:, 1] - sums[:, 0], batch.columns["choice_weight"]
        loss = weight * jax.nn.softplus(jnp.where(batch.columns["label"] > 0, -logit, logit))
        values = {"loss": loss, "denominator": weight, "logit": logit, "label": batch.columns["label"]}
        return jnp.sum(loss), values

    def summariser(self) -> Summariser:
        """Computes accuracy, overall and balanced, the area under the ROC curve, and shares."""
        return lambda values, columns: choice_summary(values)
