"""Compiles a run's step while its weights are read: shapes are enough, and the reading leaves Python alone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx

from smallr.core.sharding import named_sharding
from smallr.models.heads import split_targets
from smallr.models.loading import abstract_decoder
from smallr.training import attention
from smallr.training.optimizer import check_groups, make_optimizer
from smallr.training.policy import prepare_policy
from smallr.training.references import Reference, ReferenceOptions
from smallr.training.rounds import configured_step, program_of
from smallr.training.step import Constants, abstract_state

if TYPE_CHECKING:
    from smallr.training.splits import Split
    from smallr.training.trainer import Trainer

_OTHERWISE = ("lora", "soft", "heads")  # parts of a config with which parameters are not those of the file alone


def foresee(trainer: Trainer) -> None:
    """Compiles the step of a run that trains all parameters of its file, and whose rows are there.

    `Trainer.compile` finds the program by what it is made of. If that came out otherwise here, it would compile its own.
    """
    config, mesh = trainer.config, trainer.mesh
    options = ReferenceOptions.from_fields(config.objective)
    if (
        jax.process_count() > 1
        or config.freeze
        or any(name in config for name in _OTHERWISE)
        or options.source == "live"
    ):
        return
    compute = config.compute
    decoder = abstract_decoder(trainer.source, dtype=compute.dtype, remat=compute.remat, attention=compute.attention)
    attention.computing_with(trainer.attention.impl, trainer.attention.sequences, decoder)
    partition = prepare_policy(decoder, config, mesh)
    params = nnx.from_flat_state([(path, _placed(leaf, trainer)) for path, leaf in nnx.to_flat_state(partition.params)])
    check_groups(config.optimizer, split_targets(params)[0])
    reference = (
        Reference.moving(options.sync_every, options.sync_mixing) if options.sync_every else Reference(options.source)
    )
    optimizer = make_optimizer(config.optimizer, lambda step: 0.0)
    state, sharding = abstract_state(params, optimizer, config.seed, mesh, reference, config.optimizer.shard_over_data)
    denominator = np.asarray(trainer.training.examples_per_step(), np.float32)
    constants = dataclasses.replace(Constants.of(partition.frozen), denominator=denominator)
    arguments = state, next(_with_reference(trainer.training, reference).batches(mesh, 0, 1)), constants
    made_of = partition.policy, trainer.objective, trainer.horizons, sharding, mesh, reference
    program_of(*configured_step(config, *made_of), arguments)


def _with_reference(split: Split, reference: Reference) -> Split:
    """Returns the rows with the columns that the reference will bring, empty."""
    brings = reference.kind in ("cached", "columns")
    names = [f"ref_{name}" for name in split.completion_names] if brings else []
    return split.with_columns(**{name: np.zeros(len(split.examples), np.float32) for name in names})


def _placed(leaf: nnx.Variable, trainer: Trainer) -> nnx.Variable:
    sharding = named_sharding(trainer.mesh, leaf.get_metadata("axes"), leaf.shape)
    return leaf.replace(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding))
