"""Defines the arms of the comparison: how each student is trained from the same cloned one, and how it writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.agents.method_stages import MethodStages
from smallr.config import base, ilql, preference
from smallr.core.stages import Stage
from smallr.methods.decomposition.rows import Decomposition, parse_row
from smallr.methods.decomposition.sequence import Markers
from smallr.methods.decomposition.training_rows import cloning_rows, ilql_rows, pair_rows

Rows = Sequence[Mapping[str, Any]]
ARMS = (
    "BC",
    "BC, longer",
    "filtered BC",
    "ILQL full",
    "ILQL sparse",
    "ILQL as released",
    "DPO",
    "CogPO",
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Says how long and how fast each kind of training is.

    Attributes:
      rows, length: packed rows a step, and their tokens.
      bc_steps, bc_rate: of cloning.
      steps: of everything that starts from the cloned student.
      rate: of cloning on, and of ILQL.
      preference_rate: of DPO and CogPO.
      beta: of the advantages in decoding.
      freeze: which parameters ILQL leaves as they are, a regular expression; `.` trains the heads alone.
    """

    rows: int = 8
    length: int = 512
    bc_steps: int = 400
    bc_rate: float = 3e-3
    steps: int = 150
    rate: float = 1e-3
    preference_rate: float = 1e-4
    beta: float = 1.0
    freeze: str = ""


def shared(config: ConfigDict, recipe: Recipe, seed: int, steps: int, rate: float) -> ConfigDict:
    """Sets what all trainings have in common; their rows are given to the trainer."""
    config.seed = seed
    config.compute.dtype, config.compute.remat = "float32", "none"
    config.data.chat, config.data.eval, config.data.train_split = False, "", "train"
    config.batch.rows, config.batch.row_length = recipe.rows, recipe.length
    config.batch.scored, config.batch.examples = (
        recipe.length,
        recipe.length // 16,
    )  # one shape, one program, for all arms
    config.optimizer.learning_rate, config.optimizer.warmup, config.optimizer.weight_decay = rate, 0.05, 0.01
    config.epochs, config.steps, config.log_every, config.checkpoint.every = 0, steps, 25, steps
    config.checkpoint.keep_last = 1
    return config


def cloning(recipe: Recipe, seed: int, steps: int, rate: float) -> ConfigDict:
    """Returns the config of behavioural cloning."""
    config = shared(base(), recipe, seed, steps, rate)
    config.data.kind = "sft"
    config.objective = ConfigDict({"name": "sft", "normalisation": "token_mean"})
    return config


def values(recipe: Recipe, seed: int, as_released: bool = False) -> ConfigDict:
    """Returns the config of ILQL; decoder and heads are trained, as published, and the cloned student stays the policy."""
    config = shared(ilql(), recipe, seed, recipe.steps, recipe.rate)
    config.data.token_columns, config.data.segment_columns = (), ("reward",)
    config.objective.as_released, config.freeze = as_released, recipe.freeze
    config.optimizer.groups.heads.learning_rate = recipe.rate
    return config


def preferring(recipe: Recipe, seed: int, beta: float | Mapping[str, float]) -> ConfigDict:
    """Returns the config of DPO, or of CogPO where there is a beta for each gap."""
    config = shared(preference(beta=beta), recipe, seed, recipe.steps, recipe.preference_rate)
    config.objective.reference = "live"  # packing differs from seed to seed, and a pass over all pairs costs more
    return config


@dataclasses.dataclass(frozen=True)
class Arm:
    """Holds what writes sub-questions: a model, and the run whose advantages steer it, if there is one."""

    model: Stage
    advantage: Stage | None = None


def published_rows(data: Mapping[str, Any]) -> list[Decomposition]:
    """Reads the training rows of a data stage."""
    return [parse_row(row) for row in data["train"]]


def bc_rows(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """Makes rows of all decompositions."""
    return cloning_rows(published_rows(data), Markers())


def filtered_rows(data: Mapping[str, Any]) -> list[dict[str, str]]:
    """Makes rows of those decompositions that led to the right answer."""
    return cloning_rows(published_rows(data), Markers(), filtered=True)


def reward_rows(data: Mapping[str, Any], rewards: str) -> list[dict[str, Any]]:
    """Makes rows with rewards."""
    return ilql_rows(published_rows(data), rewards, Markers())


def preferred_rows(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Makes pairs of decompositions of one problem."""
    return pair_rows(published_rows(data), Markers())


def train_arms(
    stages: MethodStages, names: Sequence[str], data: Stage, student: Stage | str | Path, recipe: Recipe, seed: int
) -> dict[str, Arm]:
    """Names the stages of the arms: one cloned student, and what follows from it."""
    cloned = stages.make("bc_rows", bc_rows, data)
    bc = stages.train("bc", cloning(recipe, seed, recipe.bc_steps, recipe.bc_rate), cloned, start=student)

    def values_of(name: str, rewards: str, as_released: bool = False) -> Arm:
        rows = stages.make(f"{name}_rows", reward_rows, data, rewards)
        return Arm(bc, stages.train(name, values(recipe, seed, as_released), rows, start=bc))

    def follow(name: str, config: ConfigDict, rows: Stage) -> Arm:
        return Arm(stages.train(name, config, rows, start=bc))

    def pairs(name: str, beta: float | Mapping[str, float]) -> Arm:
        rows = stages.make(f"{name}_pairs", preferred_rows, data)
        return follow(name, preferring(recipe, seed, beta), rows)

    more = cloning(recipe, seed, recipe.steps, recipe.rate)
    makers = {
        "BC": lambda: Arm(bc),
        "BC, longer": lambda: follow("bc_longer", more, cloned),
        "filtered BC": lambda: follow("filtered_bc", more, stages.make("filtered_rows", filtered_rows, data)),
        "ILQL full": lambda: values_of("ilql_full", "full"),
        "ILQL sparse": lambda: values_of("ilql_sparse", "sparse"),
        "ILQL as released": lambda: values_of("ilql_released", "full", as_released=True),
        "DPO": lambda: pairs("dpo", 0.1),
        "CogPO": lambda: pairs("cogpo", {"small": 0.1, "medium": 0.2, "large": 0.5}),
    }
    return {name: makers[name]() for name in names}
