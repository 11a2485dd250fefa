"""A tiny decoder and random examples, shared by tests."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from smallr.core.sharding import make_mesh
from smallr.data.batch import ROLE_ANSWER, ROLE_NONE, ROLE_RATIONALE, Batch, Completion, Example
from smallr.data.packing import RowShape, Sizes
from smallr.data.pipeline import assemble
from smallr.models.config import DecoderConfig
from smallr.models.decoder import Decoder
from smallr.training.objective import Objective, Preference
from smallr.training.policy import NOTHING, ModelFunctions
from smallr.training.references import Reference
from smallr.training.step import Constants, TrainState, init_state, make_step

VOCAB = 61
CONFIG = DecoderConfig(
    vocab_size=VOCAB,
    num_layers=2,
    d_model=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=48,
    rope_theta=1e4,
    tie_embeddings=True,
    remat="full",
)
BETAS = (0.1, 0.2, 0.5)


def pairs(count: int, seed: int = 0) -> list[Example]:
    """Random pairs; some completions begin with a token that is not scored."""
    rng = np.random.default_rng(seed)

    def completion(skip: int) -> Completion:
        length = int(rng.integers(3, 9))
        roles = np.full(length, ROLE_ANSWER, np.int32)
        roles[:skip] = ROLE_NONE
        return Completion(rng.integers(0, VOCAB, length).astype(np.int32), roles)

    return [
        Example(
            prefix=rng.integers(0, VOCAB, rng.integers(1, 12)).astype(np.int32),
            completions=(completion(int(i % 3 == 1)), completion(int(i % 4 == 2))),
            columns={"gap": float(i % 3), "beta": float("nan")},
            row=i,
        )
        for i in range(count)
    ]


def rationale_examples(count: int, seed: int = 0) -> list[Example]:
    """Random one-completion examples with both roles."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        length = int(rng.integers(4, 12))
        roles = np.where(np.arange(length) < length // 2, ROLE_ANSWER, ROLE_RATIONALE).astype(np.int32)
        completion = Completion(rng.integers(0, VOCAB, length).astype(np.int32), roles)
        examples.append(Example(rng.integers(0, VOCAB, 5).astype(np.int32), (completion,), {}, i))
    return examples


def columns_of(examples: list[Example], seed: int = 1) -> dict[str, np.ndarray]:
    """beta by gap and random reference log-probs."""
    rng = np.random.default_rng(seed)
    beta = np.asarray([BETAS[int(example.columns["gap"])] for example in examples], np.float32)
    refs = {name: rng.uniform(-40, -10, len(examples)).astype(np.float32) for name in ("ref_chosen", "ref_rejected")}
    return {"beta": beta, **refs}


def batch_of(
    rows: list[list[int]],
    examples: list[Example],
    columns: dict[str, np.ndarray],
    *,
    tokens: int = 128,
    share_prompt: bool = True,
) -> Batch:
    """The rows as a batch whose capacities suffice for them: few different ones, so that tests share programs."""
    sizes = Sizes.of(examples)
    slots = max(sum(int(sizes.scored[i]) for i in row) for row in rows)
    most = max(1, *map(len, rows))
    shape = RowShape(tokens=tokens, scored=-(-(slots + 3) // 64) * 64, examples=-(-most // 4) * 4)
    return assemble(rows, examples, shape, columns, share_prompt)


def decoder(config: DecoderConfig = CONFIG, seed: int = 0) -> tuple[nnx.GraphDef, nnx.State]:
    """A decoder with weights large enough that attention and log-probs are far from uniform."""
    graphdef, params = _drawn(config, seed)
    return graphdef, jax.tree.map(jnp.array, params)  # copies, which may be donated


@functools.cache
def _drawn(config: DecoderConfig, seed: int) -> tuple[nnx.GraphDef, nnx.State]:
    graphdef, params = nnx.split(Decoder(config, rngs=nnx.Rngs(seed)))
    return graphdef, jax.tree.map(lambda x: np.asarray(x) * np.float32(8 if x.ndim > 2 else 3), params)


def preference(reference: str = "cached") -> Preference:
    """CogPO."""
    return Preference("sigmoid", BETAS, reference)


class Outcome(NamedTuple):
    """What a step returned, and the gradients (by parameter name) that its change of the parameters implies."""

    metrics: dict
    examples: dict
    gradient: dict[str, np.ndarray]
    state: TrainState


_STEPS: dict[tuple, Callable] = {}  # traced once for all tests of a process; a reference's parameters are an argument


def run_step(
    batch: Batch,
    objective: Objective,
    *,
    params: nnx.State | None = None,
    reference: nnx.State | None = None,
    denominator: float = 1.0,
    accumulation: int = 1,
    steps: int = 1,
    mesh: Mesh | None = None,
    config: DecoderConfig = CONFIG,
) -> Outcome:
    """Takes steps of plain SGD with rate 1, so that the change of a parameter is minus its gradient."""
    mesh = mesh or make_mesh(1, 1, 1)
    graphdef, start = decoder(config)
    params = start if params is None else params
    optimizer, schedule = optax.sgd(optax.constant_schedule(1.0)), optax.constant_schedule(1.0)
    with jax.set_mesh(mesh):
        state, sharding = init_state(jax.tree.map(jnp.copy, params), optimizer, 0, mesh)
        live = Reference.none() if reference is None else Reference.live(reference)
        options = {"chunk": 7, "accumulation": accumulation, "reference": live}
        key = (config, repr(objective), accumulation, mesh, live.program)
        step = _STEPS.get(key)
        if step is None:
            step = make_step(ModelFunctions(graphdef), objective, optimizer, schedule, sharding, mesh, **options)
            _STEPS[key] = step
        constants = Constants.of(NOTHING, live.params, denominator)
        for _ in range(steps):
            state, metrics, examples = step(state, batch, constants)
    change = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, state.params)
    gradient = {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(change)}
    return Outcome(jax.device_get(metrics), jax.device_get(examples), gradient, state)
