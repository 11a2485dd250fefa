"""Defines the reference of an objective: where its log-probs come from, what it keeps, and how it scores a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from smallr.core.errors import UserError
from smallr.data.batch import Batch
from smallr.losses import TokenScores
from smallr.training.objectives.base import Objective
from smallr.training.policy import NOTHING, ModelFunctions, ParameterPartition
from smallr.training.splits import Split

SOURCES = ("cached", "live", "columns", "none")  # what `config.objective.reference` may be
Kind = Literal["none", "columns", "cached", "live", "base", "moving"]


@dataclasses.dataclass(frozen=True)
class ReferenceOptions:
    """Holds the fields of `config.objective` that concern the reference.

    Attributes:
      source: cached: one pass before training, kept on disk. live: the reference runs in every step. columns: of the
        rows. none.
      sync_every: steps between moves of a live reference towards the policy (TR-DPO); 0: never.
      sync_mixing: the policy's share in such a move.

    Raises:
      UserError: an unknown source, or a reference that cannot be moved in that way.
    """

    source: str = "none"
    sync_every: int = 0
    sync_mixing: float = 0.6

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"config.objective.reference: {self.source!r} must be one of: {', '.join(SOURCES)}")
        if self.sync_every < 0 or not 0 <= self.sync_mixing <= 1:
            raise UserError(
                f"config.objective.sync_every={self.sync_every}, config.objective.sync_mixing={self.sync_mixing}: steps "
                "are not negative, and the policy's share lies in [0, 1]"
            )
        if self.sync_every and self.source != "live":
            raise UserError(
                f"config.objective.sync_every={self.sync_every} moves the reference, so it cannot be {self.source!r}: set "
                "config.objective.reference=live"
            )

    @classmethod
    def from_fields(cls, node: Mapping[str, Any]) -> ReferenceOptions:
        """Reads `config.objective`; an objective without these fields has no reference."""
        names = {"source": "reference", "sync_every": "sync_every", "sync_mixing": "sync_mixing"}
        return cls(**{ours: node[name] for ours, name in names.items() if name in node})


@dataclasses.dataclass(frozen=True)
class Reference:
    """Gives the log-probs of a reference, which is of one of six kinds; each has a constructor.

    Attributes:
      kind: decides how a batch is scored. none; columns and cached: the batch brings the log-probs; live: a copy of the
        starting weights; base: the model under its adapters; moving: a copy in the training state that follows the policy.
      digest: of the weights that the log-probs are of; empty for kinds that have no fixed weights.
      params: the copy of a live reference.
      renewed: whether the weights are not those that the run started with.
      sync_every, sync_mixing: of a moving reference, as in `ReferenceOptions`.
    """

    kind: Kind
    digest: str = ""
    params: nnx.State = dataclasses.field(default_factory=lambda: NOTHING)
    renewed: bool = False
    sync_every: int = 0
    sync_mixing: float = 0.0

    @classmethod
    def none(cls) -> Reference:
        """Makes a reference without log-probs."""
        return cls("none")

    @classmethod
    def columns(cls) -> Reference:
        """Takes the log-probs that the rows bring, as `ref_<completion>`."""
        return cls("columns", "columns")

    @classmethod
    def cached(cls, digest: str) -> Reference:
        """Takes log-probs under the weights of that digest, which are computed once for each set of rows."""
        return cls("cached", digest)

    @classmethod
    def live(cls, params: nnx.State, digest: str = "") -> Reference:
        """Runs the model with the parameters `params` in every step."""
        return cls("live", digest, params)

    @classmethod
    def base(cls, digest: str = "") -> Reference:
        """Runs the model under the trained adapters in every step; it needs no copy."""
        return cls("base", digest)

    @classmethod
    def moving(cls, every: int, mixing: float) -> Reference:
        """Keeps a copy of the policy, and moves it towards the policy every so many steps.

        TR-DPO: Gorbatovski et al., arXiv 2404.09656: mixing < 1 is its soft update, mixing = 1 its hard update.
        """
        return cls("moving", sync_every=every, sync_mixing=mixing)

    @property
    def runs_in_step(self) -> bool:
        """Returns whether every step needs a forward pass of the reference."""
        return self.kind in ("live", "base", "moving")

    @property
    def program(self) -> Hashable:
        """Returns what a program depends on: how batches are scored, not with which weights."""
        return self.kind, self.sync_every, self.sync_mixing

    def without_params(self) -> Reference:
        """Returns the reference for a program, which gets the parameters as arguments and must not keep them alive."""
        return dataclasses.replace(self, params=NOTHING)

    def initial_state(self, params: nnx.State) -> nnx.State:
        """Returns what the training state holds for the reference: of a moving one a copy of the parameters."""
        return jax.tree.map(jnp.copy, params) if self.kind == "moving" else NOTHING

    def next_state(self, state: nnx.State, params: nnx.State, steps: Array) -> nnx.State:
        """Moves the reference if it is due after `steps` steps: mixing * params + (1 - mixing) * reference."""
        if self.kind != "moving":
            return state

        def mix(state: nnx.State, params: nnx.State) -> nnx.State:
            return jax.tree.map(lambda r, p: (1.0 - self.sync_mixing) * r + self.sync_mixing * p, state, params)

        return jax.lax.cond(steps % self.sync_every == 0, mix, lambda state, _: state, state, params)

    def scores(
        self,
        functions: ModelFunctions,
        objective: Objective,
        batch: Batch,
        chunk: int,
        *,
        state: nnx.State,
        params: nnx.State,
        frozen: nnx.State,
    ) -> TokenScores | None:
        """Scores a batch, without a gradient; None for kinds whose log-probs the batch brings, or that have none.

        Args:
          functions: make decoders.
          objective: whose forward pass it is.
          batch: to score.
          chunk: of the vocabulary, as in `Objective.forward`.
          state: from `initial_state` and `next_state`.
          params: the copy of a live reference.
          frozen: parameters that are not trained.
        """
        if not self.runs_in_step:
            return None
        if self.kind == "base":
            decoder = functions.base_decoder(frozen)
        else:
            decoder = functions.decoder(state if self.kind == "moving" else params, frozen)
        return jax.lax.stop_gradient(objective.forward(decoder, batch, chunk))


def make_reference(options: ReferenceOptions, partition: ParameterPartition, params: nnx.State) -> Reference:
    """Makes the reference of a run that starts from the parameters `params`."""
    if options.source == "none":
        return Reference.none()
    if options.source == "columns":
        return Reference.columns()
    if options.sync_every:
        return Reference.moving(options.sync_every, options.sync_mixing)
    digest = partition.start_digest(params)
    if options.source == "cached":
        return Reference.cached(digest)
    if partition.policy.base is not None:
        return Reference.base(digest)
    return Reference.live(jax.tree.map(jnp.copy, params), digest)


def stored_columns(split: Split) -> Split:
    """Adds the columns `ref_<completion>` that the rows bring.

    Raises:
      UserError: a column is missing, or some rows have no number in it.
    """
    given, found = split.examples.columns, {}
    names = [f"ref_{completion}" for completion in split.completion_names]
    for name in names:
        if name not in given:
            raise UserError(
                f"config.objective.reference=columns needs the columns {', '.join(names)} in every row; "
                f"{name} is missing. `smallr score` makes them; or set config.objective.reference=cached"
            )
        values = np.asarray(given[name], np.float32)
        without = np.flatnonzero(~np.isfinite(values))
        if without.size:
            raise UserError(
                f"column {name}: {without.size} examples have no number, e.g. {without[:5].tolist()}. Score the rows again "
                "with a row length that these examples fit in"
            )
        found[name] = values
    return dataclasses.replace(split.with_columns(**found), reference="columns")
