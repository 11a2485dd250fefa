"""Keeps what the rounds of a run share: which rows it is on, what begins anew with the next ones, and compiled steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from smallr.config import to_plain
from smallr.core.reuse import PROGRAMS, settings, shapes
from smallr.data.packing import RowShape
from smallr.training.objectives.base import Objective
from smallr.training.optimizer import Horizon, make_optimizer, make_schedule
from smallr.training.policy import ModelFunctions
from smallr.training.progress import announce, log
from smallr.training.references import Reference
from smallr.training.step import Step, TrainState, make_step, step_identity


@dataclasses.dataclass(frozen=True)
class Round:
    """Names the rows that a run is on: the fingerprint of their tokens, and the step at which it came to them."""

    data: str = ""
    start: int = 0


@dataclasses.dataclass(frozen=True)
class Renewal:
    """Names what begins anew with the next round."""

    optimizer: bool = False
    reference: bool = False


class CompiledSteps:
    """Keeps the compiled steps of a run, one for each shape of a batch and plan of learning rates.

    Rounds whose rows have one shape share a program; a log line says whether one was kept or compiled anew.
    """

    def __init__(self) -> None:
        """Begins without a program."""
        self._programs: dict[Hashable, Any] = {}
        self._round = Round()

    def __len__(self) -> int:
        """Returns the number of programs."""
        return len(self._programs)

    def get(self, step: Step, made_of: Hashable, arguments: tuple[Any, ...], shape: RowShape, round: Round) -> Any:
        """Returns the program for these arguments: of this run, of an earlier one in this process, or compiled now.

        Args:
          step: that `make_step` has made.
          made_of: what it was made of (`step_identity`).
          arguments: of the step: the state, a batch and the constants.
          shape: of the batch's rows, for the log line.
          round: that the program is for; a program that is kept is told of once a round.
        """
        key = _key(made_of, arguments)
        about = f"rows of {shape.tokens} tokens, {shape.scored} scored positions and {shape.examples} examples"
        if key in self._programs:
            if self._round != round:
                log(f"programs: kept, for {about}")
        else:
            if self._programs:
                log(
                    f"programs: compiled anew, for {about}; config.batch.scored and config.batch.examples can fix the shape"
                )
            self._programs[key] = program_of(step, made_of, arguments)
        self._round = round
        return self._programs[key]


def _key(made_of: Hashable, arguments: tuple[Any, ...]) -> Hashable:
    return made_of, shapes(arguments), settings()


def program_of(step: Step, made_of: Hashable, arguments: tuple[Any, ...]) -> Any:
    """Returns the program of a step for some arguments: that of an earlier run in this process, or compiled now."""
    key = _key(made_of, arguments)
    if key not in PROGRAMS:
        announce("compiling the step …")
    return PROGRAMS.get(key, lambda: step.lower(*arguments).compile())


def configured_step(
    config: ConfigDict,
    policy: ModelFunctions,
    objective: Objective,
    horizons: Sequence[Horizon],
    sharding: TrainState,
    mesh: Mesh,
    reference: Reference,
) -> tuple[Step, Hashable]:
    """Returns the step of a run, which is not traced yet, and what it is made of."""
    schedule = make_schedule(config.optimizer, horizons)
    options = {
        "chunk": config.compute.logp_chunk,
        "accumulation": config.batch.accumulation,
        "reference": reference,
        "shard_over_data": config.optimizer.shard_over_data,
    }
    identity = step_identity(
        policy, objective, to_plain(config)["optimizer"], _plan(config, horizons), sharding, mesh, **options
    )
    optimizer = make_optimizer(config.optimizer, schedule)
    return make_step(policy, objective, optimizer, schedule, sharding, mesh, made_of=identity, **options), identity


def _plan(config: ConfigDict, horizons: Sequence[Horizon]) -> Hashable:
    """Returns what the learning rates depend on beside the config: nothing where there is one, whatever the length."""
    constant = config.optimizer.schedule == "constant" and config.optimizer.warmup == 0 and len(horizons) == 1
    return () if constant else tuple(horizons)
