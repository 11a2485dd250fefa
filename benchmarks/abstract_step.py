"""Describes the training step by arrays that do not exist: shapes, dtypes and shardings, for ahead-of-time compilation.

The program is `smallr.training.step.make_step`, as training builds it; only its arguments are
`jax.ShapeDtypeStruct`s, so that an 8B model is compiled on a machine that could not hold it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from smallr.data.batch import ROLE_ANSWER, Batch, Completion, Example
from smallr.data.packing import RowShape
from smallr.data.pipeline import assemble
from smallr.models.attention_xla import ACCELERATOR, CPU, Rule, make_rule
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.models.sizes import SIZES
from smallr.training.objective import make_objective
from smallr.training.optimizer import Horizon, make_optimizer, make_schedule
from smallr.training.policy import NOTHING, ModelFunctions
from smallr.training.references import Reference
from smallr.training.splits import batch_sharding
from smallr.training.state_sharding import param_sharding
from smallr.training.step import Constants, abstract_state, make_step

SHAPES: Mapping[str, DecoderConfig] = {
    **SIZES,
    # For tests: every kind of weight, the vocabulary much larger than anything else.
    "tiny": DecoderConfig(4096, 3, 64, 8, 4, 8, 192, tie_embeddings=True, qkv_bias=True),
}


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Holds rows filled with preference pairs of one length.

    Attributes:
      rows: of a step.
      row_length: tokens of a row.
      prompt: tokens of a pair's prompt.
      completion: tokens of each of its completions, all scored.
    """

    rows: int
    row_length: int
    prompt: int = 256
    completion: int = 256

    @property
    def per_row(self) -> int:
        """Returns pairs of a row."""
        return self.row_length // (self.prompt + 2 * self.completion)

    def batch(self) -> Batch:
        """Returns the step's batch, with its numbers."""
        completion = Completion(np.zeros(self.completion, np.int32), np.full(self.completion, ROLE_ANSWER, np.int32))
        pair = Example(np.zeros(self.prompt, np.int32), (completion, completion), {}, 0)
        slots = -(-self.per_row * 2 * self.completion // 64) * 64
        shape = RowShape(tokens=self.row_length, scored=slots, examples=-(-self.per_row // 4) * 4)
        columns = {name: np.ones(1, np.float32) for name in ("beta", "gap", "ref_chosen", "ref_rejected")}
        return assemble([[0] * self.per_row] * self.rows, [pair], shape, columns, share_prompt=True)

    def useful_flops(self, config: DecoderConfig, live_reference: bool) -> float:
        """Returns the FLOPs of a step's forward and backward pass: products of real tokens, visible pairs, scored positions."""
        prompt, completion = self.prompt, self.completion
        visible = prompt * (prompt + 1) / 2 + 2 * (completion * prompt + completion * (completion + 1) / 2)
        pairs = self.rows * self.per_row
        forward = config.forward_flops(pairs * (prompt + 2 * completion), pairs * visible, pairs * 2 * completion)
        return forward * (4 if live_reference else 3)


@dataclasses.dataclass(frozen=True)
class AbstractStep:
    """Holds a step and the arguments it is lowered with."""

    config: DecoderConfig
    mesh: Mesh
    pairs: Pairs
    step: Callable
    arguments: tuple

    def compile(self) -> jax.stages.Compiled:
        """Returns the compiled step."""
        with jax.set_mesh(self.mesh):
            return self.step.lower(*self.arguments).compile()

    def useful_flops(self) -> float:
        """Returns the FLOPs that a step needs, over all devices."""
        return self.pairs.useful_flops(self.config, live_reference=bool(jax.tree.leaves(self.arguments[2].reference)))

    def attention_rule(self) -> Rule:
        """Returns which key tiles the query tiles of `xla` attention take on this platform."""
        tiling = CPU if self.mesh.devices.flat[0].platform == "cpu" else ACCELERATOR
        batch = self.pairs.batch()
        return make_rule(batch.horizon, batch.positions, None, tiling.of(self.pairs.row_length))

    def dynamic_trips(self) -> float:
        """Returns the mean trips of the loop over the parts of a query tile in `xla` attention, which depend on data."""
        return float(np.mean(self.attention_rule().parts))

    def visible_share(self) -> float:
        """Returns, of the tiles on and below the diagonal, the share of those that hold a visible pair, for square tiles."""
        counts = self.attention_rule().counts
        return int(counts.sum()) / (len(counts) * (len(counts) + 1) / 2)


def abstract_step(model: DecoderConfig, config: ConfigDict, mesh: Mesh, pairs: Pairs) -> AbstractStep:
    """Returns the step of `config` (objective, optimizer, accumulation, chunk) on `model` over `mesh`."""
    objective = make_objective(config)
    schedule = make_schedule(config.optimizer, (Horizon(0, 1000),))
    optimizer = make_optimizer(config.optimizer, schedule)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))))
    over_data = config.optimizer.shard_over_data
    state, sharding = abstract_state(params, optimizer, 0, mesh, shard_over_data=over_data)
    copy = NOTHING
    if objective.reference == "live":
        copy = jax.tree.map(_struct, params, param_sharding(params, mesh))
    step = make_step(
        ModelFunctions(graphdef),
        objective,
        optimizer,
        schedule,
        sharding,
        mesh,
        chunk=config.compute.logp_chunk,
        accumulation=config.batch.accumulation,
        reference=Reference.live(copy) if objective.reference == "live" else None,
        shard_over_data=over_data,
    )
    batch = jax.tree.map(functools.partial(_struct, sharding=batch_sharding(mesh)), pairs.batch())
    constants = Constants(NOTHING, copy, jax.ShapeDtypeStruct((), jnp.float32))
    arguments = (state, batch, constants)
    return AbstractStep(model, mesh, pairs, step, arguments)


def _struct(x: jax.Array, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
