"""Defines the training state, the one jitted step and the one jitted evaluation."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from smallr.core import traced
from smallr.core.reuse import PROGRAMS, identity, settings, shapes
from smallr.core.sharding import constrain
from smallr.data.batch import Batch
from smallr.models.heads import follow, join_targets, split_targets
from smallr.training.objectives.base import Objective
from smallr.training.optimizer import steps_of_schedule
from smallr.training.policy import NOTHING, ModelFunctions
from smallr.training.references import Reference
from smallr.training.splits import batch_sharding
from smallr.training.state_sharding import optimizer_sharding, param_sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Holds all that a step changes. Step n of the data follows from `step` and the seed, so this is also the data position.

    Attributes:
      step: int32, steps done.
      params: float32 master parameters that are trained, and target copies of heads, which follow them; the others stay
        outside (`policy.ParameterPartition`).
      opt_state: state of the optimizer.
      rng: raw key data; a step folds its number into it.
      reference: what the reference keeps here (`Reference.initial_state`).
    """

    step: Int[Array, ""]
    params: nnx.State
    opt_state: Any
    rng: Array
    reference: nnx.State


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Constants:
    """Holds arrays that a step reads and does not change; other values need no other program.

    Attributes:
      frozen: parameters that are not trained.
      reference: the copy of a live reference.
      denominator: what a step's summed loss is divided by where the objective normalises by epoch.
    """

    frozen: nnx.State
    reference: nnx.State
    denominator: Float[Any, ""]

    @classmethod
    def of(cls, frozen: nnx.State = NOTHING, reference: nnx.State = NOTHING, denominator: float = 1.0) -> Constants:
        """Makes the arrays of a run."""
        return cls(frozen, reference, np.asarray(denominator, np.float32))


def state_sharding(
    abstract: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh, shard_over_data: bool = False
) -> TrainState:
    """Returns the NamedSharding of every array of the state, from the `axes` metadata of the parameters."""
    replicated = NamedSharding(mesh, PartitionSpec())
    online = split_targets(abstract.params)[0]
    return TrainState(
        step=replicated,
        params=param_sharding(abstract.params, mesh),
        opt_state=optimizer_sharding(abstract.opt_state, online, mesh, shard_over_data),
        rng=replicated,
        reference=param_sharding(abstract.reference, mesh),
    )


def init_state(
    params: nnx.State,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    reference: Reference | None = None,
    shard_over_data: bool = False,
) -> tuple[TrainState, TrainState]:
    """Builds the state at step 0 around loaded parameters, which are donated, and its shardings."""
    create = _creator(optimizer, seed, reference)
    sharding = state_sharding(jax.eval_shape(create, params), optimizer, mesh, shard_over_data)
    return jax.jit(create, out_shardings=sharding, donate_argnums=0)(params), sharding


def abstract_state(
    params: nnx.State,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    reference: Reference | None = None,
    shard_over_data: bool = False,
) -> tuple[TrainState, TrainState]:
    """Returns shapes and shardings of what `init_state` makes, without making it."""
    shapes = jax.eval_shape(_creator(optimizer, seed, reference), params)
    sharding = state_sharding(shapes, optimizer, mesh, shard_over_data)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding), sharding


def _creator(optimizer: optax.GradientTransformation, seed: int, reference: Reference | None) -> Callable:
    def create(params: nnx.State) -> TrainState:
        key = jax.random.key_data(jax.random.key(seed))
        kept = (reference or Reference.none()).initial_state(params)
        opt_state = optimizer.init(split_targets(params)[0])
        return TrainState(jnp.zeros((), jnp.int32), params, opt_state, key, kept)

    return create


Step = Callable[[TrainState, Batch, Constants], tuple[TrainState, dict[str, Array], dict[str, Array]]]


def _make_gradients(functions: ModelFunctions, objective: Objective, chunk: int, reference: Reference) -> Callable:
    """Builds the function that gives loss, values of examples, and gradients of what is trained."""

    def gradients(state: TrainState, batch: Batch, constants: Constants, key: Array, denominator: Array):
        online, targets = split_targets(state.params)

        def loss_fn(online):
            params = join_targets(online, targets)
            scores = objective.forward(functions.decoder(params, constants.frozen, key), batch, chunk)
            held = {"state": state.reference, "params": constants.reference, "frozen": constants.frozen}
            total, per_example = objective(scores, batch, reference.scores(functions, objective, batch, chunk, **held))
            return total / denominator, per_example

        return jax.value_and_grad(loss_fn, has_aux=True)(online)

    return gradients


def step_identity(
    functions: ModelFunctions,
    objective: Objective,
    optimizer: Mapping[str, Any],
    horizons: Hashable,
    sharding: TrainState,
    mesh: Mesh,
    *,
    chunk: int,
    accumulation: int,
    reference: Reference,
    shard_over_data: bool,
) -> Hashable:
    """Returns all that `make_step` makes a program of; `optimizer` and `horizons` are what optimizer and schedule are made of."""
    leaves, structure = jax.tree.flatten(sharding)
    made_of = functions.identity, identity(objective), identity(optimizer), horizons, reference.program
    return ("step", *made_of, tuple(leaves), structure, mesh, chunk, accumulation, shard_over_data)


def make_step(
    functions: ModelFunctions,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    sharding: TrainState,
    mesh: Mesh,
    *,
    chunk: int,
    accumulation: int = 1,
    reference: Reference | None = None,
    shard_over_data: bool = False,
    made_of: Hashable | None = None,
) -> Step:
    """Builds `step(state, batch, constants) -> state, metrics, per_example`, jitted; the state is donated.

    `metrics` are scalars; `per_example` has one [B, P] array a value, `example` among them. The loss among the metrics is
    the mean over the step's own examples, whatever the gradient is normalised by. With `shard_over_data` a device
    updates the parameters of its part of the optimizer's state alone, and gets the others from the devices that have theirs.
    With `made_of` (`step_identity`) a step that was traced before is not traced again.
    """
    reference = (reference or Reference.none()).without_params()
    gradients = _make_gradients(functions, objective, chunk, reference)

    def step(state: TrainState, batch: Batch, constants: Constants):
        online, targets = split_targets(state.params)
        own = jnp.maximum(objective.denominator(batch), 1e-9)
        denominator = constants.denominator if objective.normalise == "epoch" else own
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        if accumulation == 1:
            (loss, per_example), gradient = gradients(state, batch, constants, key, denominator)
        else:
            loss, per_example, gradient = _accumulate(
                lambda micro, index: gradients(state, micro, constants, jax.random.fold_in(key, index), denominator),
                batch,
                accumulation,
                online,
            )
        if shard_over_data:
            online, gradient = (_over_data(tree, mesh) for tree in (online, gradient))
        updates, opt_state = optimizer.update(gradient, state.opt_state, online)
        metrics = {
            "loss": loss if objective.normalise == "step" else loss * (denominator / own),
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": jnp.asarray(schedule(steps_of_schedule(state.opt_state, state.step)), jnp.float32),
            "tokens": jnp.sum(batch.horizon > 0),
        }
        online = optax.apply_updates(online, updates)
        params = join_targets(online, follow(targets, online, functions.target_mixing))
        kept = reference.next_state(state.reference, params, state.step + 1)
        state = TrainState(state.step + 1, params, opt_state, state.rng, kept)
        return state, metrics, {**per_example, "example": batch.example}

    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step if made_of is None else traced.kept(step, made_of),
        in_shardings=(sharding, batch_sharding(mesh), None),
        out_shardings=(sharding, replicated, replicated),
        donate_argnums=0,
    )


def _over_data(tree: nnx.State, mesh: Mesh) -> nnx.State:
    """Splits parameters or gradients as the optimizer's state is split."""
    return jax.lax.with_sharding_constraint(tree, param_sharding(tree, mesh, over_data=True))


class Evaluation:
    """Computes per-example values of a batch under given parameters, without gradients; `example` is among them.

    Args:
      functions: make decoders.
      objective: that is evaluated.
      mesh: of the arrays.
      chunk: of the vocabulary.
      reference: of the objective.
      constants: of the run.
    """

    def __init__(
        self,
        functions: ModelFunctions,
        objective: Objective,
        mesh: Mesh,
        *,
        chunk: int,
        reference: Reference | None = None,
        constants: Constants | None = None,
    ):
        reference = (reference or Reference.none()).without_params()
        self._constants = constants or Constants.of()
        self._key = "evaluation", functions.identity, identity(objective), mesh, chunk, reference.program

        def evaluation(params: nnx.State, batch: Batch, kept: nnx.State, constants: Constants):
            scores = objective.forward(functions.decoder(params, constants.frozen), batch, chunk)
            held = {"state": kept, "params": constants.reference, "frozen": constants.frozen}
            of_reference = reference.scores(functions, objective, batch, chunk, **held)
            return {**objective(scores, batch, of_reference)[1], "example": batch.example}

        shardings = {
            "in_shardings": (None, batch_sharding(mesh), None, None),
            "out_shardings": NamedSharding(mesh, PartitionSpec()),
        }
        self._compiled = PROGRAMS.get(self._key, lambda: jax.jit(evaluation, **shardings))

    def __call__(self, params: nnx.State, batch: Batch, kept: nnx.State = NOTHING) -> dict[str, Array]:
        """Evaluates; `kept` is what the training state holds for the reference."""
        return self._compiled(params, batch, kept, self._constants)

    def program_digest(self, params: nnx.State, batch: Batch) -> str:
        """Returns the SHA-256 of the program for such arguments, as text before it is compiled."""
        given = params, batch, NOTHING, self._constants

        def digest() -> str:
            return hashlib.sha256(self._compiled.lower(*given).as_text().encode()).hexdigest()

        key = "digest", self._key, shapes(given), settings()
        return PROGRAMS.get(key, lambda: traced.remembered(key, digest))


def _accumulate(gradient_fn: Callable, batch: Batch, count: int, params: nnx.State):
    """Sums loss and float32 gradients over `count` micro-batches; the denominator is the whole step's."""

    def split(x: Array) -> Array:  # neighbouring rows go to different micro-batches, so each keeps all devices busy
        return constrain(jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1), None, "batch")

    def join(x: Array) -> Array:
        return jnp.swapaxes(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])

    def body(carry, micro):
        loss, gradient = carry
        (micro_loss, per_example), micro_gradient = gradient_fn(*micro)
        return (loss + micro_loss, jax.tree.map(jnp.add, gradient, micro_gradient)), per_example

    start = (jnp.zeros(()), jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
    (loss, gradient), per_example = jax.lax.scan(body, start, (jax.tree.map(split, batch), jnp.arange(count)))
    return loss, jax.tree.map(join, per_example), gradient
