"""Computes reference log-probs of a set of rows once and keeps them on disk under all that their bits depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float
from tqdm import tqdm

from smallr.core.cache import Cache
from smallr.core.errors import UserError
from smallr.training.evaluation import collect
from smallr.training.progress import log
from smallr.training.splits import Split

if TYPE_CHECKING:
    from smallr.training.step import Evaluation
    from smallr.training.trainer import Trainer

Scores = Float[np.ndarray, "completions examples"]
KIND = "reference"  # of cache entries
VALUES = "values"  # of entries that hold what an evaluation gives


def cached_columns(
    split: Split,
    evaluation: Evaluation,
    abstract: nnx.State,
    digest: str,
    mesh: Mesh,
    weights: Callable[[], nnx.State],
    steps: int | None = None,
) -> Split:
    """Adds a column `ref_<name>` for each completion of an example: its summed log-probs under the reference.

    They are computed with the program that evaluates the policy and on the rows of the first epoch. The position of
    an example in a row decides in which order its sums are rounded; in bfloat16 that moves a log-prob by tenths of a nat. So
    policy and reference round alike, and the first loss is ln 2. For the same reason an entry of the cache is known by the
    layout of the rows and the program itself: what a run computes depends on its inputs alone, never on which run has
    filled the cache.

    A run of fewer steps than an epoch has needs the rows of its steps alone. Examples of others keep NaN, here and in the
    cache, until a longer run adds theirs.

    Args:
      split: whose rows are scored.
      evaluation: of the run.
      abstract: parameters of the same shapes as the reference's.
      digest: of all weights of the reference, those that are not trained included.
      mesh: of the run.
      weights: gives the parameters of the reference; it is asked only if the cache lacks log-probs of theirs.
      steps: that will be taken of this split, from the first of its first epoch; None: all of it is needed.
    """
    names = [f"ref_{name}" for name in split.completion_names]
    # The evaluation subtracts the reference, but reports the policy's own scores too: any reference will do.
    blank = split.with_columns(**{name: np.zeros(len(split.examples), np.float32) for name in names})
    identity = scores_identity(blank, evaluation, abstract, digest, mesh)
    values = _read(identity, (len(names), len(split.examples)))
    missing = _missing(split, values, steps)
    if missing:
        _compute(values, missing, blank, evaluation, weights(), mesh)
        if jax.process_index() == 0:
            Cache(KIND).put_array(identity, values)
    else:
        log(f"reference log-probs, {split.name}: from the cache; weights, rows and program are those of an earlier run")
    return dataclasses.replace(split.with_columns(**dict(zip(names, values, strict=True))), reference=digest)


def reference_columns(trainer: Trainer, split: Split) -> Split:
    """Adds the columns of a run's cached reference to its training or held-out rows."""
    # Of a renewed reference all is computed at once: later its weights are gone.
    partly = split is trainer.training and not trainer.reference.renewed
    steps = trainer.steps - trainer.round.start if partly else None
    given = trainer.evaluation, trainer.state.params, trainer.reference.digest, trainer.mesh
    return cached_columns(split, *given, lambda: _reference_params(trainer), steps)


def _reference_params(trainer: Trainer) -> nnx.State:
    """Returns the weights of a cached reference.

    Raises:
      UserError: they are those of an earlier step, and gone.
    """
    partition, reference = trainer.partition, trainer.reference
    if reference.renewed and reference.digest == partition.digest_now(trainer.params):
        return trainer.state.params
    if reference.renewed:
        raise UserError(
            f"{trainer.workdir}: the reference is the model at an earlier step, whose weights are gone, and the cache has no "
            "log-probs of these rows under it: renew the reference with the rows, or begin the round in another workdir"
        )
    if trainer.step == 0 or partition.policy.base is not None:
        return partition.start(trainer.state.params)
    log(f"reference: reading {trainer.source.name} again; config.objective.reference=live would keep it in memory")
    return trainer.read_policy().params


def heldout_values(trainer: Trainer) -> dict[str, Float[np.ndarray, "examples"]]:
    """Returns the values of a run's held-out examples; of the weights that a cached reference has, once for all runs."""
    state, split, reference = trainer.state, trainer.heldout, trainer.reference
    # Under adapters the weights have no digest of their own; several processes would have to agree.
    is_start = trainer.step == 0 and trainer.partition.policy.base is None and jax.process_count() == 1
    if is_start and reference.kind == "cached" and not reference.renewed:
        return cached_values(split, trainer.evaluation, state.params, reference.digest, trainer.mesh)
    return collect(
        lambda batch: trainer.evaluation(state.params, batch, state.reference),
        split.one_pass(trainer.mesh),
        len(split.examples),
    )


def cached_values(
    split: Split, evaluation: Evaluation, params: nnx.State, digest: str, mesh: Mesh
) -> dict[str, Float[np.ndarray, "examples"]]:
    """Evaluates every example of a split, or takes the values that an earlier run has computed with the same program.

    Args:
      split: with its reference's columns.
      evaluation: of the run.
      params: to evaluate.
      digest: of all weights that the evaluation computes with.
      mesh: of the run.
    """
    columns = hashlib.sha256()
    for name, values in sorted(split.columns.items()):
        columns.update(f"{name} {values.dtype} {values.shape}\n".encode() + np.ascontiguousarray(values).tobytes())
    identity = f"{columns.hexdigest()} {scores_identity(split, evaluation, params, digest, mesh)}"
    if (kept := Cache(VALUES).get_json(identity)) is not None:
        log("values of the held-out rows: from the cache; weights, rows and program are those of an earlier run")
        return {name: np.asarray(values, dtype) for name, (dtype, values) in kept.items()}
    found = collect(lambda batch: evaluation(params, batch), split.one_pass(mesh), len(split.examples))
    Cache(VALUES).put_json(identity, {name: (str(values.dtype), values.tolist()) for name, values in found.items()})
    return found


def scores_identity(split: Split, evaluation: Evaluation, params: nnx.State, digest: str, mesh: Mesh) -> str:
    """Names weights, tokens, the layout of rows, the program and what compiles and runs it."""
    batch = next(split.batches(mesh, 0, 1))
    parts = {
        "weights": digest,
        "rows": split.examples.fingerprint,
        "layout": split.layout_digest(),
        "program": evaluation.program_digest(params, batch),
        "mesh": [list(mesh.shape.items()), jax.process_count()],
        "platform": [jax.default_backend(), jax.devices()[0].device_kind, jax.__version__],
    }
    return json.dumps(parts, sort_keys=True)


def _missing(split: Split, values: Scores, steps: int | None) -> range:
    """Returns the batches of `split.one_pass` from the first that lacks values to the last that is needed."""
    plan = split.plan.once
    count = plan.num_steps(1)
    if steps is not None and plan is split.plan:  # an epoch of a mixture takes its examples in another order
        count = min(count, steps)
    lacking = np.isnan(values).any(axis=0)
    first = (n for n in range(count) if any(lacking[row].any() for row in plan.step(n)))
    return range(next(first, count), count)


def _compute(
    values: Scores, missing: range, split: Split, evaluation: Evaluation, params: nnx.State, mesh: Mesh
) -> None:
    """Writes the log-probs of the examples in some batches of `split.one_pass` into `values`."""
    bar = tqdm(
        split.one_pass(mesh, missing.start, len(missing)),
        total=len(missing),
        desc=f"reference log-probs, {split.name}",
        unit="batch",
        mininterval=0.5 if sys.stderr.isatty() else 20,  # a log file wants few lines
        disable=jax.process_index() > 0,
    )
    for batch in bar:
        found = jax.device_get(evaluation(params, batch))
        real = found["example"] >= 0
        for scores, name in zip(values, split.completion_names, strict=True):
            scores[found["example"][real]] = found[f"score_{name}"][real]


def _read(identity: str, shape: tuple[int, ...]) -> Scores:
    """Returns what the cache has, NaN elsewhere, on all processes: process 0 reads, since the others may not see its disk."""
    kept = Cache(KIND).get_array(identity) if jax.process_index() == 0 else None
    values = np.full(shape, np.nan, np.float32) if kept is None else np.array(kept, np.float32)
    return values if jax.process_count() == 1 else np.array(multihost_utils.broadcast_one_to_all(values))
