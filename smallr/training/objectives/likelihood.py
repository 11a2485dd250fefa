"""Maximises the likelihood of completions, answers and rationales."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from smallr.core.errors import UserError
from smallr.data.batch import Batch
from smallr.losses import TokenScores
from smallr.losses.logprobs import completion_sums
from smallr.losses.rationale import Normalisation, amplification, rationale_loss, role_nll
from smallr.training.objectives.base import Objective, Summariser
from smallr.training.summaries import RankCorrelation, likelihood_summary, summary_by_order


@dataclasses.dataclass(frozen=True)
class Likelihood(Objective):
    """Maximises the weighted likelihood of answers and rationales; plain SFT has answers only.

    Attributes as in `losses.rationale.rationale_loss`; `amplify` is the clip of the weight by rationale
    NLL, 0 for no weighting; `window` the number of examples for the rank correlation, 0 for none. The tokens of an example
    are those of all its completions.
    """

    any_completions: ClassVar[bool] = True
    entropy: ClassVar[bool] = True

    answer_weight: float = 1.0
    rationale_weight: float = 1.0
    normalisation: Normalisation = "token_mean"
    amplify: float = 0.0
    window: int = 0

    @property
    def whole_step(self) -> str:
        """Says that amplification compares samples, if it is on."""
        return "config.objective.amplify compares the samples of a whole step" if self.amplify else ""

    def __post_init__(self) -> None:
        if self.normalisation not in ("sum", "token_mean", "sample_mean"):
            raise UserError(
                f"config.objective.normalisation: {self.normalisation!r} must be one of: sum, token_mean, sample_mean"
            )
        for name in ("answer_weight", "rationale_weight"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(f"config.objective.{name}: {getattr(self, name)} must be a finite number >= 0")
        if self.window:
            RankCorrelation(self.window)
        if self.amplify and not self.amplify > 1:
            raise UserError(f"config.objective.amplify: the clip {self.amplify} must be above 1, or 0 for none")

    def _terms(self, logps: Float[Array, "B N"], batch: Batch):
        completions = batch.completion_columns["weight"].shape[1]
        nll = role_nll(logps, batch.completion, batch.role, batch.example.shape[1], completions)
        terms = rationale_loss(
            nll,
            answer_weight=self.answer_weight,
            rationale_weight=self.rationale_weight,
            normalisation=self.normalisation,
        )
        return nll, *terms

    def denominator(self, batch: Batch) -> Float[Array, ""]:
        """Counts scored tokens (weighted) or examples, as the normalisation says."""
        return jnp.sum(self._terms(jnp.zeros(batch.role.shape, jnp.float32), batch)[2])

    def __call__(self, scores: TokenScores, batch: Batch, reference: TokenScores | None):
        """Returns the sum of the numerators, and the NLL and tokens of each example by role."""
        nll, numerator, denominator = self._terms(scores.logps, batch)
        if self.amplify:
            numerator = numerator * amplification(nll, self.amplify)
        per_example = {"loss": numerator, "denominator": denominator}
        per_example |= {f"nll_{name}": value for name, value in nll._asdict().items()}
        if scores.entropy is not None:
            per_example |= {"entropy": self._sums(scores.entropy, batch), "correct": self._sums(scores.is_top, batch)}
        return jnp.sum(numerator), per_example

    def _sums(self, values: Float[Array, "B N"], batch: Batch) -> Float[Array, "B P"]:
        """Sums values of scored positions over each example."""
        shape = batch.completion_columns["weight"].shape[1], batch.example.shape[1]
        return completion_sums(values, batch.completion, batch.role > 0, *shape).sum(1)

    def summariser(self) -> Summariser:
        """Computes the NLL by role, the share of the hardest quarter, and the rank correlation of the two NLLs over the window."""
        correlation = RankCorrelation(self.window) if self.window else None

        def summarise(values: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]) -> dict[str, float]:
            summary = likelihood_summary(values) | summary_by_order(values, columns)
            if correlation is not None:
                correlation.add(values)
                if (value := correlation.value()) is not None:
                    summary["spearman"] = value
            return summary

        return summarise
