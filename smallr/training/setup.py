"""Everything a run needs before its first step: data, weights, reference, programs, what an earlier run left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.models.config import DecoderConfig
from smallr.models.loading import ModelSource, load_decoder
from smallr.training.checkpoints import Checkpointer
from smallr.training.evaluation import add_reference
from smallr.training.objective import Objective, make_objective
from smallr.training.opening import open_trained
from smallr.training.optimizer import make_optimizer, make_schedule
from smallr.training.policy import NOTHING, ParameterPartition, check_soft, prepare_policy
from smallr.training.progress import log
from smallr.training.resume import check_resume, save_config
from smallr.training.splits import PrepareRows, Split, check_batch, load_split
from smallr.training.step import TrainState, init_state, make_evaluation, make_step
from smallr.training.timing import Clock

# Fields that a checkpoint is tied to; everything else may differ when a run is resumed.
FROZEN = ("seed", "model", "compute.dtype", "data", "batch", "objective", "freeze", "lora", "soft", "student", "labels")


@dataclasses.dataclass(frozen=True)
class Run:
    """A prepared run; only the state, which every step replaces, stands beside it.

    Attributes:
      steps: of the whole run, those of earlier sessions included.
      trained: which parameters are trained, and those that are not.
      reference: parameters of a live reference that stays as it is, or None.
      step: the compiled step (`step.make_step`).
      evaluation: per-example values of a batch (`step.make_evaluation`).
      baseline: the evaluation before the first step, when the run is resumed.
      fingerprint: of the tokenised training data.
      origin: digest of the weights that the reference is made of; empty where it is none or moves.
      share_trained: parameters that are trained, as a share of the model's.
    """

    config: ConfigDict
    workdir: Path
    mesh: Mesh
    model: DecoderConfig
    objective: Objective
    training: Split
    heldout: Split | None
    steps: int
    checkpointer: Checkpointer
    trained: ParameterPartition
    reference: nnx.State | None
    step: Callable[..., Any]
    evaluation: Callable[..., Any]
    baseline: dict[str, float] | None
    fingerprint: str
    origin: str
    share_trained: float


def prepare(
    config: ConfigDict, workdir: Path, mesh: Mesh, clock: Clock, prepare_rows: PrepareRows = lambda rows: rows
) -> tuple[Run, TrainState]:
    """Reads, loads and compiles; resumes from the newest checkpoint of `workdir`.

    `prepare_rows` is done with the rows of both splits before they are checked.

    Raises:
      UserError: whatever the user has to change, before any step is taken.
    """
    # ---- What is cheap to check ---------------------------------------------------------------------------
    check_batch(config, mesh)
    objective = make_objective(config)
    check_soft(config, objective.reference)
    source = open_trained(config.model, config.tokenizer, allow_nonfinite=config.allow_nonfinite)
    checkpointer = Checkpointer(str(workdir / "checkpoints"), config.checkpoint.keep_last, config.checkpoint.keep_every)

    # ---- Data ---------------------------------------------------------------------------------------------
    tokenizer = source.tokenizer()
    training = load_split(config, tokenizer, objective, "train", prepare_rows=prepare_rows)
    heldout = None
    if config.data.eval:
        heldout = load_split(config, tokenizer, objective, "eval", training.plan.shape, prepare_rows)
    check_fit(source, training, heldout)
    steps = total_steps(config, training)
    fingerprint = training.examples.fingerprint
    for note in check_resume(workdir, config, fingerprint, FROZEN):
        log(note)
    save_config(workdir, config, fingerprint)
    clock.lap("data")

    # ---- Weights and reference ----------------------------------------------------------------------------
    compute = config.compute
    decoder = load_decoder(source, mesh, dtype=compute.dtype, remat=compute.remat, attention=compute.attention)
    trained = prepare_policy(decoder, config, mesh)
    policy, params, frozen = trained.policy, trained.params, trained.frozen
    share_trained = sum(x.size for x in jax.tree.leaves(params)) / decoder.config.num_params if trained.digest else 1.0
    clock.lap("model")
    evaluation = make_evaluation(policy, objective, mesh, chunk=compute.logp_chunk, frozen=frozen)
    reference, origin = None, ""
    if objective.reference in ("live", "cached") and not objective.sync_every:
        origin = trained.start_digest()
    if objective.reference == "live" and not objective.sync_every:
        # Under adapters the base is the reference: no second copy.
        reference = NOTHING if policy.base else jax.tree.map(lambda x: x.copy(), params)
    if objective.reference == "cached":
        base = (trained.start(), mesh, compute.dtype, origin)
        training, cached = add_reference(training, objective, evaluation, *base)
        if heldout:
            heldout, _ = add_reference(heldout, objective, evaluation, *base)
        if cached:
            log("reference log-probs: from the cache, since weights and data are those of an earlier run")
        clock.lap("reference")

    # ---- State and programs -------------------------------------------------------------------------------
    schedule = make_schedule(config.optimizer, steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    state, sharding = init_state(params, optimizer, config.seed, mesh, moving_reference=objective.sync_every > 0)
    chunk, accumulation = compute.logp_chunk, config.batch.accumulation
    step = make_step(policy, objective, optimizer, schedule, sharding, mesh, chunk=chunk, accumulation=accumulation)
    step = step.lower(state, next(training.batches(mesh, 0, 1)), reference, frozen).compile()
    clock.lap("compile")

    # ---- What an earlier run left -------------------------------------------------------------------------
    baseline = None
    if checkpointer.latest_step() is not None:
        abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, sharding)
        del state  # two states at once may not fit
        restored = checkpointer.restore_latest(abstract)
        check_base(source, trained.digest, origin, restored.metadata)
        state, baseline = restored.state, restored.metadata["baseline"]
        log(f"resuming {workdir} at step {restored.step} of {steps}")
        clock.lap("restore")
    run = Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        model=decoder.config,
        objective=objective,
        training=training,
        heldout=heldout,
        steps=steps,
        checkpointer=checkpointer,
        trained=dataclasses.replace(trained, params=NOTHING),  # the state has them now
        reference=reference,
        step=step,
        evaluation=evaluation,
        baseline=baseline,
        fingerprint=fingerprint,
        origin=origin,
        share_trained=share_trained,
    )
    return run, state


def check_base(source: ModelSource, frozen: str, origin: str, metadata: Mapping[str, Any]) -> None:
    """Whether the parameters that are not in a checkpoint, frozen ones and the reference's, are those it was made with.

    Raises:
      UserError: they are not.
    """
    found = {
        "frozen parameters have": (frozen, metadata.get("frozen", "")),
        "weights, the reference, have": (origin, metadata.get("origin", origin)),
    }
    for what, (now, saved) in found.items():
        if saved != now:
            raise UserError(
                f"model {source.name} has changed: its {what} the digest {now[-12:]}, those that the checkpoint was trained "
                f"with {saved[-12:]}. Restore the model's files, or use another workdir to start anew."
            )


def total_steps(config: ConfigDict, training: Split) -> int:
    """Steps of the run: `config.steps`, or those of `config.epochs`, whichever is fewer.

    Raises:
      UserError: neither is set, or one is negative.
    """
    if config.epochs < 0 or config.steps < 0 or not (config.epochs or config.steps):
        raise UserError(
            f"config.epochs={config.epochs}, config.steps={config.steps}: one of them must be positive, none negative"
        )
    limits = [config.steps] if config.steps else []
    if config.epochs:
        limits.append(training.plan.num_steps(config.epochs))
    return min(limits)


def check_fit(source: ModelSource, *splits: Split | None) -> None:
    """Whether the model can read the data: positions within its context, token ids within its vocabulary.

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
