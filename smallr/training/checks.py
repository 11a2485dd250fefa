"""Checks a run before its first step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.models.loading import ModelSource
from smallr.training.objective import Objective, make_objective
from smallr.training.optimizer import Horizon, check_optimizer, make_schedule
from smallr.training.options import tokenize_options
from smallr.training.policy import check_freeze, check_heads, check_soft
from smallr.training.saved import run_config
from smallr.training.splits import Split
from smallr.training.tracking import check_trackers


def check_run(config: ConfigDict, mesh: Mesh) -> Objective:
    """Checks all that is known before rows and weights are read; returns the objective.

    Raises:
      UserError: a field, or fields that do not go together.
    """
    check_batch(config, mesh)
    check_context(config, mesh)
    check_length(config)
    objective = make_objective(config)
    check_soft(config, objective.reference)
    check_freeze(config)
    check_heads(config)
    check_trackers(config.track.to)
    tokenize_options(config)
    check_optimizer(config)
    make_schedule(config.optimizer, (Horizon(0, config.steps or sys.maxsize),))
    warn_of_start(config)
    return objective


def warn_of_start(config: ConfigDict) -> None:
    """Warns of ILQL that does not begin from a trained policy: its values are meant to steer a cloned one."""
    if config.objective.name == "ilql" and run_config(Path(config.model).expanduser()) is None:
        logging.warning(
            "config.model: objective ilql should begin from a policy that was cloned on the same completions, e.g. a run of "
            "objective sft, but %s is not a run; its values will steer a policy that does not write such completions",
            config.model,
        )


def check_batch(config: ConfigDict, mesh: Mesh) -> None:
    """Checks that the batch can be split over the mesh and into micro-batches.

    Raises:
      UserError: it cannot; the message names the fields and the numbers that would do.
    """
    rows, accumulation = config.batch.rows, config.batch.accumulation
    if rows < 1 or accumulation < 1:
        raise UserError(f"config.batch: rows={rows} and accumulation={accumulation} must be at least 1")
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (parts * accumulation):
        unit = parts * accumulation
        raise UserError(
            f"config.batch.rows={rows} cannot be split over data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']} devices "
            f"in {accumulation} micro-batch(es): it must be a multiple of {unit}, e.g. {max(unit, rows // unit * unit)} "
            f"or {-(-rows // unit) * unit}"
        )


def check_context(config: ConfigDict, mesh: Mesh) -> None:
    """Checks that rows can be split over the mesh axis `context`, where it has more than one device.

    Raises:
      UserError: they cannot, or something of the run does not go with it.
    """
    devices, length = mesh.shape["context"], config.batch.row_length
    if devices == 1:
        return
    if length % (2 * devices):
        unit = 2 * devices
        raise UserError(
            f"config.batch.row_length={length} cannot be split over mesh.context={devices}: it must be a multiple of {unit}, "
            f"two stretches a device, e.g. {-(-length // unit) * unit}"
        )
    if config.batch.scored % devices:
        raise UserError(
            f"config.batch.scored={config.batch.scored}: with mesh.context={devices} it must be a multiple of {devices}; "
            "0: chosen"
        )
    if config.compute.attention not in ("auto", "xla"):
        raise UserError(
            f"config.compute.attention={config.compute.attention}: with mesh.context={devices} attention runs over rows that "
            "are split, which this kernel does not know; take auto or xla"
        )
    if config.benchmark.name:
        raise UserError(
            f"config.benchmark.name={config.benchmark.name}: answers are not written on a mesh with context={devices}; "
            "leave it empty, and use smallr evaluate"
        )


def check_length(config: ConfigDict) -> None:
    """Checks that the config says when the run ends.

    Raises:
      UserError: neither epochs nor steps are set, or one is negative.
    """
    if config.epochs < 0 or config.steps < 0 or not (config.epochs or config.steps):
        raise UserError(
            f"config.epochs={config.epochs}, config.steps={config.steps}: one of them must be positive, none negative"
        )
    for name in ("log_every", "checkpoint.every"):
        node, _, field = name.rpartition(".")
        value = getattr(getattr(config, node) if node else config, field)
        if value < 1:
            raise UserError(f"config.{name}={value} must be at least 1")


def total_steps(config: ConfigDict, training: Split) -> int:
    """Returns the steps of the run: `config.steps`, or those of `config.epochs`, whichever is fewer."""
    limits = [config.steps] if config.steps else []
    if config.epochs:
        limits.append(training.plan.num_steps(config.epochs))
    return min(limits)


def check_fit(source: ModelSource, *splits: Split | None) -> None:
    """Checks that the model can read the data: positions within its context, token ids within its vocabulary.

    Raises:
      UserError: it cannot.
    """
    sets = [split.examples for split in splits if split]
    longest = max(int((examples.prefix_lengths + examples.completion_lengths.max(1)).max()) for examples in sets)
    if longest > source.config.max_positions:
        raise UserError(
            f"an example is {longest} tokens long, but {source.name} has {source.config.max_positions} positions: "
            "make config.batch.row_length smaller (longer examples are then dropped and counted)"
        )
    highest = max(int(examples.tokens.max()) for examples in sets)
    if highest >= source.config.vocab_size:
        raise UserError(
            f"the tokenizer of {source.name} made token {highest}, but the model has {source.config.vocab_size}"
        )


def check_rounds(config: ConfigDict) -> None:
    """Checks that the length of a run does not depend on the rows of one of its rounds.

    Raises:
      UserError: it does.
    """
    if config.epochs or not config.steps:
        raise UserError(
            f"config.epochs={config.epochs}, config.steps={config.steps}: a run in rounds has config.epochs=0, and in "
            "config.steps the steps of all rounds together"
        )
    if config.best.metric:
        raise UserError(
            f"config.best.metric={config.best.metric}: a run in rounds takes its newest checkpoint; leave it empty"
        )


def check_base(source: ModelSource, frozen: str, reference: str, metadata: Mapping[str, Any]) -> None:
    """Checks that what is not in a checkpoint, frozen parameters and the reference's weights, are those it was made with.

    Args:
      source: of the model.
      frozen: digest of the parameters that are not trained.
      reference: digest of the reference's weights.
      metadata: of the checkpoint.

    Raises:
      UserError: they are not.
    """
    found = {"frozen parameters have": (frozen, metadata["frozen"])}
    if not metadata["renewed"]:
        found["weights, the reference, have"] = (reference, metadata["reference"])
    for what, (now, saved) in found.items():
        if saved != now:
            raise UserError(
                f"model {source.name} has changed: its {what} the digest {now[-12:]}, those that the checkpoint was trained "
                f"with {saved[-12:]}. Restore the model's files, or use another workdir to start anew."
            )
