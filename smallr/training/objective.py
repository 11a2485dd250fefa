"""What a step minimises: from per-token log-probs and columns to one number.

An objective says which columns it needs (checked on the host before training), how its losses are
averaged, and what it reports of each example. Averages over pairs, gaps and windows are taken on the host from
these per-example values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from smallr.data.batch import Batch
from smallr.data.rows import GAPS
from smallr.errors import UserError
from smallr.losses import branch_sums, dpo
from smallr.losses.rationale import Normalisation, amplification, rationale_loss, role_nll
from smallr.training.summaries import RankCorrelation, likelihood_summary, preference_summary

PerExample = dict[str, Float[Array, "B P"]]
# (per-example values, columns of the data set), one flat array each -> metrics
Summariser = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], dict[str, float]]


class Objective(Protocol):
    """Interface of an objective.

    Attributes:
      reference: cached | live, or None where no reference is needed.
    """

    reference: str | None

    def columns(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns [examples] that batches carry, from those of the data set; raises UserError where one is missing."""
        ...

    def denominator(self, batch: Batch) -> Float[Array, ""]:
        """What the step's summed loss is divided by; a function of the data alone, so that micro-batches add up."""
        ...

    def __call__(
        self, logps: Float[Array, "B N"], batch: Batch, reference_logps: Float[Array, "B N"] | None
    ) -> tuple[Float[Array, ""], PerExample]:
        """Summed loss (not yet divided) and what is reported of each example.

        Among the values are `loss` and `denominator`: an example's part of the sum and of what it is divided by.
        """
        ...

    def summariser(self) -> Summariser:
        """A function from values of examples to the metrics of a log line; it may remember earlier calls."""
        ...


@dataclasses.dataclass(frozen=True)
class Preference:
    """DPO with a beta per pair.

    Attributes:
      betas: one number for all pairs (DPO), or a number for each gap (CogPO); with gaps, a pair's own `beta`
        column comes first.
      label_smoothing: assumed share of flipped labels, in [0, 0.5].
      reference: cached | live.
    """

    betas: float | tuple[float, float, float]
    label_smoothing: float
    reference: str

    def __post_init__(self) -> None:
        for beta in np.atleast_1d(self.betas):
            if not (np.isfinite(beta) and beta >= 0):
                raise UserError(f"config.objective.beta: {beta} must be a finite number >= 0")
        if not 0 <= self.label_smoothing <= 0.5:
            raise UserError(f"config.objective.label_smoothing: {self.label_smoothing} is not in [0, 0.5]")
        if self.reference not in ("cached", "live"):
            raise UserError(f"config.objective.reference: {self.reference!r} is neither 'cached' nor 'live'")

    def columns(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`beta` of each pair."""
        gap = np.asarray(given["gap"]).astype(int)
        if isinstance(self.betas, tuple):
            own = np.asarray(given["beta"], np.float32)
            beta = np.where(np.isnan(own), np.asarray([*self.betas, np.nan], np.float32)[gap], own)
            without = np.flatnonzero(np.isnan(beta))
            if without.size:
                raise UserError(
                    f"objective cogpo needs a `gap` ({', '.join(GAPS)}) or a `beta` in every pair; {without.size} pairs "
                    f"have neither, e.g. {without[:5].tolist()}. Map the column with config.data.columns.gap, "
                    "or use configs/dpo.py for one beta."
                )
        else:
            beta = np.full(gap.shape, self.betas, np.float32)
        return {"beta": beta}

    def denominator(self, batch: Batch) -> Float[Array, ""]:
        """Number of pairs."""
        return jnp.sum(batch.columns["weight"])

    def __call__(self, logps, batch, reference_logps):
        """Sum of the pairs' losses; log-ratios to the reference and rewards of both sides."""
        scored, places = batch.role > 0, batch.example.shape[1]
        chosen, rejected = jnp.moveaxis(branch_sums(logps, batch.branch, scored, 2, places), 1, 0)
        if reference_logps is None:
            ref_chosen, ref_rejected = batch.columns["ref_chosen"], batch.columns["ref_rejected"]
        else:
            ref_chosen, ref_rejected = jnp.moveaxis(branch_sums(reference_logps, batch.branch, scored, 2, places), 1, 0)
        beta = batch.columns["beta"]
        losses = dpo(chosen, rejected, ref_chosen, ref_rejected, beta, self.label_smoothing)
        per_example = {
            "loss": losses,
            "denominator": batch.columns["weight"],
            "logp_chosen": chosen,
            "logp_rejected": rejected,
            "ratio_chosen": chosen - ref_chosen,
            "ratio_rejected": rejected - ref_rejected,
            "reward_chosen": beta * (chosen - ref_chosen),
            "reward_rejected": beta * (rejected - ref_rejected),
        }
        return jnp.sum(losses * batch.columns["weight"]), per_example

    def summariser(self) -> Summariser:
        """Rewards, margin, accuracy and KL, overall and per gap."""
        return lambda values, columns: preference_summary(values, columns)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """Weighted likelihood of answers and rationales; plain SFT has answers only.

    Attributes as in `losses.rationale.rationale_loss`; `amplify` is the clip of the weight by rationale
    NLL, 0 for no weighting; `window` the number of examples for the rank correlation, 0 for none.
    """

    answer_weight: float = 1.0
    rationale_weight: float = 1.0
    normalisation: Normalisation = "token_mean"
    amplify: float = 0.0
    window: int = 0
    reference: None = None

    def __post_init__(self) -> None:
        if self.normalisation not in ("sum", "token_mean", "sample_mean"):
            raise UserError(
                f"config.objective.normalisation: {self.normalisation!r} is none of sum, token_mean, sample_mean"
            )
        for name in ("answer_weight", "rationale_weight"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(f"config.objective.{name}: {getattr(self, name)} must be a finite number >= 0")
        if self.window:
            RankCorrelation(self.window)
        if self.amplify and not self.amplify > 1:
            raise UserError(f"config.objective.amplify: the clip {self.amplify} must be above 1, or 0 for none")

    def columns(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """None."""
        return {}

    def _terms(self, logps, batch):
        nll = role_nll(logps, batch.branch, batch.role, batch.example.shape[1])
        terms = rationale_loss(
            nll,
            answer_weight=self.answer_weight,
            rationale_weight=self.rationale_weight,
            normalisation=self.normalisation,
        )
        return nll, *terms

    def denominator(self, batch: Batch) -> Float[Array, ""]:
        """Scored tokens (weighted) or examples, as the normalisation says."""
        return jnp.sum(self._terms(jnp.zeros(batch.role.shape, jnp.float32), batch)[2])

    def __call__(self, logps, batch, reference_logps):
        """Sum of the numerators; NLL and tokens of each example by role."""
        nll, numerator, denominator = self._terms(logps, batch)
        if self.amplify:
            numerator = numerator * amplification(nll, self.amplify)
        per_example = {"loss": numerator, "denominator": denominator}
        return jnp.sum(numerator), per_example | {f"nll_{name}": value for name, value in nll._asdict().items()}

    def summariser(self) -> Summariser:
        """NLL by role, share of the hardest quarter, and the rank correlation of the two NLLs over the window."""
        correlation = RankCorrelation(self.window) if self.window else None

        def summarise(values: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]) -> dict[str, float]:
            summary = likelihood_summary(values)
            if correlation is not None:
                correlation.add(values)
                if (value := correlation.value()) is not None:
                    summary["spearman"] = value
            return summary

        return summarise


def make_objective(config: ConfigDict) -> Objective:
    """The objective that `config.objective.name` names.

    Raises:
      UserError: an unknown name or a field out of its range.
    """
    fields = config.objective
    if fields.name == "dpo":
        return Preference(float(fields.beta), fields.label_smoothing, fields.reference)
    if fields.name == "cogpo":
        betas = tuple(float(fields.beta[gap]) for gap in GAPS)
        return Preference(betas, fields.label_smoothing, fields.reference)
    if fields.name == "sft":
        return Likelihood(normalisation=fields.normalisation)
    if fields.name == "rationale":
        if fields.amplify and config.batch.accumulation > 1:
            raise UserError(
                "config.objective.amplify compares the samples of a whole step: set config.batch.accumulation=1"
            )
        return Likelihood(
            fields.answer_weight, fields.rationale_weight, fields.normalisation, fields.amplify, fields.window
        )
    raise UserError(f"config.objective.name: {fields.name!r} is none of cogpo, dpo, sft, rationale")
