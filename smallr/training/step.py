"""The training state and the one jitted step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from smallr.core.sharding import constrain, named_sharding
from smallr.data.batch import Batch
from smallr.losses import TokenScores, token_scores
from smallr.models.decoder import Decoder
from smallr.training.objective import Objective
from smallr.training.policy import NOTHING, ModelFunctions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes. Step n of the data follows from `step` and the seed, so this is also the data position.

    Attributes:
      step: int32, steps done.
      params: float32 master parameters that are trained; the others stay outside (`policy.ParameterPartition`).
      opt_state: state of the optimizer.
      rng: raw key data; a step folds its number into it.
      reference: parameters of a live reference that moves with the policy, or None for one that does not.
    """

    step: Int[Array, ""]
    params: nnx.State
    opt_state: Any
    rng: Array
    reference: nnx.State | None = None


def state_sharding(abstract: TrainState, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The NamedSharding of every array of the state, from the `axes` metadata of the parameters."""
    replicated = NamedSharding(mesh, PartitionSpec())
    params = param_sharding(abstract.params, mesh)
    opt_state = optax.tree_map_params(
        optimizer, lambda _, sharding: sharding, abstract.opt_state, params, transform_non_params=lambda _: replicated
    )
    reference = None if abstract.reference is None else params
    return TrainState(step=replicated, params=params, opt_state=opt_state, rng=replicated, reference=reference)


def param_sharding(params: nnx.State, mesh: Mesh) -> nnx.State:
    """The NamedSharding of each parameter."""
    return jax.tree.map(
        lambda leaf: leaf.replace(named_sharding(mesh, leaf.get_metadata("axes"), leaf.get_value().shape)),
        params,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )


def init_state(
    params: nnx.State,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    moving_reference: bool = False,
) -> tuple[TrainState, TrainState]:
    """State at step 0 around loaded parameters, and its shardings; a moving reference starts as a copy of them."""

    def create(params: nnx.State) -> TrainState:
        key = jax.random.key_data(jax.random.key(seed))
        reference = jax.tree.map(jnp.copy, params) if moving_reference else None
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), key, reference)

    sharding = state_sharding(jax.eval_shape(create, params), optimizer, mesh)
    return jax.jit(create, out_shardings=sharding, donate_argnums=0)(params), sharding


def score(decoder: Decoder, batch: Batch, chunk: int, log_sum_p2: bool = False) -> TokenScores:
    """Log-prob (and `log_sum_p2`, if asked) of every scored position, float32; 0 in unused scored positions."""
    hidden = decoder(batch.tokens, batch.positions, batch.horizon)
    # Only the hidden states that predict something reach the head.
    states = jnp.take_along_axis(hidden, batch.logit_position[..., None], axis=1)
    states = constrain(states, "batch", "tokens", "activation_embed")
    scores = token_scores(
        states,
        decoder.unembedding(),
        batch.target,
        chunk=chunk,
        softcap=decoder.config.final_softcap,
        log_sum_p2=log_sum_p2,
    )
    return jax.tree.map(lambda x: jnp.where(batch.role > 0, x, 0.0), scores)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data axes."""
    return named_sharding(mesh, ("batch",))


def make_step(
    policy: ModelFunctions,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    sharding: TrainState,
    mesh: Mesh,
    *,
    chunk: int,
    accumulation: int = 1,
) -> Callable[[TrainState, Batch, nnx.State | None, nnx.State], tuple[TrainState, dict[str, Array], dict[str, Array]]]:
    """Builds `step(state, batch, reference_params, frozen) -> state, metrics, per_example`.

    `reference_params` is None where reference log-probs are columns of the batch, or where the reference is part of
    the state; empty where it is the base under adapters. `frozen` are the parameters that no step changes. `metrics`
    are scalars; `per_example` has one [B, P] array a value, `example` among them. The state is donated.
    """

    def loss_fn(params, batch, reference, frozen, key, denominator):
        scores = score(policy.decoder(params, frozen, key), batch, chunk, objective.log_sum_p2)
        reference_scores = None
        if reference is not None:
            reference_scores = jax.lax.stop_gradient(score(policy.reference(reference, frozen), batch, chunk))
        total, per_example = objective(scores, batch, reference_scores)
        return total / denominator, per_example

    def step(state: TrainState, batch: Batch, reference: nnx.State | None, frozen: nnx.State):
        reference = reference if state.reference is None else state.reference
        denominator = jnp.maximum(objective.denominator(batch), 1e-9)
        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        if accumulation == 1:
            (loss, per_example), gradient = gradient_fn(state.params, batch, reference, frozen, key, denominator)
        else:
            loss, per_example, gradient = _accumulate(
                lambda micro, index: gradient_fn(
                    state.params, micro, reference, frozen, jax.random.fold_in(key, index), denominator
                ),
                batch,
                accumulation,
                state.params,
            )
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(gradient),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "tokens": jnp.sum(batch.horizon > 0),
        }
        params, moved = optax.apply_updates(state.params, updates), None
        if state.reference is not None:
            due = (state.step + 1) % objective.sync_every == 0
            moved = move_reference(state.reference, params, due, objective.sync_mixing)
        state = TrainState(state.step + 1, params, opt_state, state.rng, moved)
        return state, metrics, {**per_example, "example": batch.example}

    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        step,
        in_shardings=(sharding, batch_sharding(mesh), None, None),
        out_shardings=(sharding, replicated, replicated),
        donate_argnums=0,
    )


def move_reference(reference: nnx.State, params: nnx.State, due: Array, mixing: float) -> nnx.State:
    """mixing * params + (1 - mixing) * reference where it is due, else the reference.

    TR-DPO: Gorbatovski et al., arXiv 2404.09656: mixing < 1 is its soft update, mixing = 1 its hard update.
    """

    def mix(reference, params):
        return jax.tree.map(lambda r, p: (1.0 - mixing) * r + mixing * p, reference, params)

    return jax.lax.cond(due, mix, lambda reference, _: reference, reference, params)


def make_evaluation(
    policy: ModelFunctions, objective: Objective, mesh: Mesh, *, chunk: int, frozen: nnx.State = NOTHING
) -> Callable[[nnx.State, Batch, nnx.State | None], dict[str, Array]]:
    """Builds `evaluation(params, batch, reference_params) -> per_example`, without gradients."""

    def evaluation(params: nnx.State, batch: Batch, reference: nnx.State | None, frozen: nnx.State):
        scores = score(policy.decoder(params, frozen), batch, chunk, objective.log_sum_p2)
        reference_scores = None
        if reference is not None:
            reference_scores = score(policy.reference(reference, frozen), batch, chunk)
        return {**objective(scores, batch, reference_scores)[1], "example": batch.example}

    compiled = jax.jit(
        evaluation,
        in_shardings=(None, batch_sharding(mesh), None, None),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )
    return lambda params, batch, reference: compiled(params, batch, reference, frozen)


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
