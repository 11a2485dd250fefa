"""Defines what an objective is, and reads the fields of a config that it is made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.data.batch import Batch
from smallr.losses import TokenScores
from smallr.models.decoder import Decoder
from smallr.training.forward import score

NORMALISATIONS = ("epoch", "step")
OF_REFERENCE = ("sync_every", "sync_mixing")  # fields of `config.objective` that `references.ReferenceOptions` takes

PerExample = dict[str, Float[Array, "B P"]]
# (per-example values, columns of the data set), one flat array each -> metrics
Summariser = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], dict[str, float]]


class Objective:
    """Defines what a step minimises; the base class of objectives. A subclass defines `__call__` and what differs from here.

    Attributes:
      reference: where reference log-probs come from, one of `references.SOURCES`.
      completion_names: of the completions of an example. A batch of a cached or stored reference has a column
        `ref_<name>` for each, which is the value `score_<name>` of an example under the reference.
      any_completions: whether an example may have any number of completions, instead of one for each of `completion_names`.
      log_sum_p2: whether the loss needs `TokenScores.log_sum_p2`.
      entropy: whether it reports `TokenScores.entropy` and `is_top`.
      whole_step: why the loss has to see all examples of a step at once; empty if it need not.
      normalise: what the gradient of a step's summed loss is divided by. "step": the denominator of its own examples.
        "epoch": the mean denominator of a step, so that an example counts the same in whatever step it is.
    """

    reference: str = "none"
    completion_names: tuple[str, ...] = ("completion",)
    any_completions: bool = False
    log_sum_p2: bool = False
    entropy: bool = False
    whole_step: str = ""
    normalise: str = "step"

    @classmethod
    def from_fields(cls, node: Mapping[str, Any]) -> Self:
        """Makes the objective from `config.objective`, whose fields are those of the class, a dataclass.

        Raises:
          UserError: a field that the class does not have.
        """
        fields = Fields(node, f"objective {node['name']}")
        fields.take("name")
        own = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
        objective = cls(**{field.name: fields.take(field.name) for field in own if field.name in node})
        if objective.reference != "none":
            fields.leave(*OF_REFERENCE)
        fields.finish()
        return objective

    def columns(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Makes the columns [examples] that batches carry from those of the data set; by default there are none.

        Raises:
          UserError: a column is missing or has a value that cannot be used.
        """
        return {}

    def forward(self, decoder: Decoder, batch: Batch, chunk: int) -> TokenScores:
        """Runs the model on a batch; the result is what `__call__` gets as `scores`, and `reference` likewise."""
        return score(decoder, batch, chunk, self.log_sum_p2, self.entropy)

    def denominator(self, batch: Batch) -> Float[Array, ""]:
        """Returns what the step's summed loss is divided by; by default the number of examples.

        It is a function of the data alone, so that micro-batches add up.
        """
        return jnp.sum(batch.columns["weight"])

    def __call__(
        self, scores: TokenScores, batch: Batch, reference: TokenScores | None
    ) -> tuple[Float[Array, ""], PerExample]:
        """Returns the summed loss (not yet divided) and what is reported of each example.

        Among the values are `loss` and `denominator`: an example's part of the sum and of what it is divided by.
        `reference` is given if the reference model runs in the step; else its log-probs are columns, or there is none.
        """
        raise NotImplementedError

    def summariser(self) -> Summariser:
        """Returns a function from values of examples to the metrics of a log line; it may keep earlier calls in mind.

        By default there are no metrics beside the loss.
        """
        return lambda values, columns: {}


class Fields:
    """Hands out the fields of `config.objective`; one that nobody takes is an error, so that no field is silently ignored."""

    def __init__(self, node: ConfigDict, about: str):
        """Takes the fields of `node`; `about` names the objective in messages."""
        self._node, self._about = node, about
        self._left = set(node.keys())

    def take(self, name: str) -> Any:
        """Returns the value of a field that must be there."""
        if name not in self._node:
            raise UserError(
                f"config.objective has no field {name!r}, which {self._about} needs. Fields differ between losses: use "
                "smallr train preference:LOSS, or cogpo:LOSS for a beta per gap"
            )
        self._left.discard(name)
        return self._node[name]

    def leave(self, *names: str) -> None:
        """Leaves fields to somebody else."""
        self._left.difference_update(names)

    def finish(self) -> None:
        """Raises UserError where a field has not been taken."""
        if left := sorted(self._left):
            raise UserError(
                f"config.objective.{left[0]}: {self._about} has no such field. Fields differ between losses: use "
                "smallr train preference:LOSS, or cogpo:LOSS for a beta per gap"
            )


def check_normalise(normalise: str) -> str:
    """Returns a rule of normalisation that exists; raises UserError for another."""
    if normalise not in NORMALISATIONS:
        raise UserError(f"config.objective.normalise: {normalise!r} must be one of: {', '.join(NORMALISATIONS)}")
    return normalise
