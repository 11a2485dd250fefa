"""What an objective is, and the fields of a config that it is made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.data.batch import Batch
from smallr.losses import TokenScores

REFERENCES = ("cached", "live", "columns", "none")

PerExample = dict[str, Float[Array, "B P"]]
# (per-example values, columns of the data set), one flat array each -> metrics
Summariser = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], dict[str, float]]


class Objective(Protocol):
    """Interface of an objective.

    Attributes:
      reference: where reference log-probs come from. cached: one pass before training; live: a forward pass in the
        step; columns: `ref_<side>` of the rows; none.
      sides: what the completions of an example are called. A batch of a cached or stored reference has a column
        `ref_<side>` for each, which is the value `score_<side>` of an example under the reference.
      reference_key: whatever `score_<side>` depends on besides weights, data and compute dtype.
      log_sum_p2: whether `TokenScores.log_sum_p2` is needed.
      whole_step: why a loss has to see all examples of a step at once; empty if it need not.
      sync_every: steps between moves of a live reference towards the policy; 0: never.
      sync_mixing: the policy's share in such a move.
    """

    reference: str
    sides: tuple[str, ...]
    reference_key: str
    log_sum_p2: bool
    whole_step: str
    sync_every: int
    sync_mixing: float

    def columns(self, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Columns [examples] that batches carry, from those of the data set; raises UserError where one is missing."""
        ...

    def denominator(self, batch: Batch) -> Float[Array, ""]:
        """What the step's summed loss is divided by; a function of the data alone, so that micro-batches add up."""
        ...

    def __call__(
        self, scores: TokenScores, batch: Batch, reference: TokenScores | None
    ) -> tuple[Float[Array, ""], PerExample]:
        """Summed loss (not yet divided) and what is reported of each example.

        Among the values are `loss` and `denominator`: an example's part of the sum and of what it is divided by.
        `reference` is given if the reference is live.
        """
        ...

    def summariser(self) -> Summariser:
        """A function from values of examples to the metrics of a log line; it may remember earlier calls."""
        ...


class Fields:
    """Fields of `config.objective`; what nobody takes is an error, so that no field is silently without effect."""

    def __init__(self, node: ConfigDict, about: str):
        """`about` names the objective in messages."""
        self._node, self._about = node, about
        self._left = set(node.keys())

    def take(self, name: str) -> Any:
        """The value of a field that must be there."""
        if name not in self._node:
            raise UserError(
                f"config.objective has no field {name!r}, which {self._about} needs. Fields differ between losses: use "
                "--config=configs/preference.py:LOSS, or configs/cogpo.py:LOSS for a beta per gap"
            )
        self._left.discard(name)
        return self._node[name]

    def finish(self) -> None:
        """Raises UserError where a field has not been taken."""
        if left := sorted(self._left):
            raise UserError(
                f"config.objective.{left[0]}: {self._about} has no such field. Fields differ between losses: use "
                "--config=configs/preference.py:LOSS, or configs/cogpo.py:LOSS for a beta per gap"
            )


def check_reference(reference: str) -> None:
    """Raises UserError for an unknown source of reference log-probs."""
    if reference not in REFERENCES:
        raise UserError(f"config.objective.reference: {reference!r} is none of {', '.join(REFERENCES)}")


def check_sync(reference: str, every: int, mixing: float) -> None:
    """Raises UserError where the reference cannot be moved in that way."""
    if every < 0 or not 0 <= mixing <= 1:
        raise UserError(
            f"config.objective.sync_every={every}, config.objective.sync_mixing={mixing}: steps are not negative, and the "
            "policy's share lies in [0, 1]"
        )
    if every and reference != "live":
        raise UserError(
            f"config.objective.sync_every={every} moves the reference, so it cannot be {reference!r}: set "
            "config.objective.reference=live"
        )


def stored_reference(given: Mapping[str, np.ndarray], sides: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns `ref_<side>` of the rows.

    Raises:
      UserError: a column is missing, or some rows have no number in it.
    """
    found = {}
    for side in sides:
        name = f"ref_{side}"
        if name not in given:
            raise UserError(
                f"config.objective.reference=columns needs the columns {', '.join(f'ref_{s}' for s in sides)} in every row; "
                f"{name} is missing. `python -m smallr.cli.score` makes them; or set config.objective.reference=cached"
            )
        values = np.asarray(given[name], np.float32)
        without = np.flatnonzero(~np.isfinite(values))
        if without.size:
            raise UserError(
                f"column {name}: {without.size} examples have no number, e.g. {without[:5].tolist()}. Score the rows again "
                "with a row length that these examples fit in"
            )
        found[name] = values
    return found
