"""Computes reference log-probs of a set of rows once and keeps them on disk under all that their bits depend on."""

from __future__ import annotations

import dataclasses
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
from smallr.training.evaluation import collect
from smallr.training.progress import log
from smallr.training.splits import Split

if TYPE_CHECKING:
    from smallr.training.step import Evaluation

Scores = Float[np.ndarray, "completions examples"]
KIND = "reference"  # of cache entries


def cached_columns(
    split: Split, evaluation: Evaluation, abstract: nnx.State, digest: str, mesh: Mesh, weights: Callable[[], nnx.State]
) -> Split:
    """Adds a column `ref_<name>` for each completion of an example: its summed log-probs under the reference.

    They are computed with the program that evaluates the policy and on the rows of the first epoch. The position of
    an example in a row decides in which order its sums are rounded; in bfloat16 that moves a log-prob by tenths of a nat. So
    policy and reference round alike, and the first loss is ln 2. For the same reason an entry of the cache is known by the
    layout of the rows and the program itself: what a run computes depends on its inputs alone, never on which run has
    filled the cache.

    Args:
      split: whose rows are scored.
      evaluation: of the run.
      abstract: parameters of the same shapes as the reference's.
      digest: of all weights of the reference, those that are not trained included.
      mesh: of the run.
      weights: gives the parameters of the reference; it is asked only if the cache has no log-probs of theirs.
    """
    names = [f"ref_{name}" for name in split.completion_names]
    # The evaluation subtracts the reference, but reports the policy's own scores too: any reference will do.
    blank = split.with_columns(**{name: np.zeros(len(split.examples), np.float32) for name in names})
    identity = scores_identity(blank, evaluation, abstract, digest, mesh)
    values = _read(identity, (len(names), len(split.examples)))
    if values is not None:
        log(f"reference log-probs, {split.name}: from the cache; weights, rows and program are those of an earlier run")
    else:
        values = _computed(blank, evaluation, weights(), mesh)
        if jax.process_index() == 0:
            Cache(KIND).put_array(identity, values)
    return dataclasses.replace(split.with_columns(**dict(zip(names, values, strict=True))), reference=digest)


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


def _computed(split: Split, evaluation: Evaluation, params: nnx.State, mesh: Mesh) -> Scores:
    bar = tqdm(
        split.one_pass(mesh),
        total=split.plan.once.num_steps(1),
        desc=f"reference log-probs, {split.name}",
        unit="batch",
        mininterval=0.5 if sys.stderr.isatty() else 20,  # a log file wants few lines
        disable=jax.process_index() > 0,
    )
    found = collect(lambda batch: evaluation(params, batch), bar, len(split.examples))
    return np.stack([found[f"score_{name}"] for name in split.completion_names]).astype(np.float32)


def _read(identity: str, shape: tuple[int, ...]) -> Scores | None:
    """Returns the cached values, on all processes or on none: process 0 decides, since the others may not see its disk."""
    values = Cache(KIND).get_array(identity) if jax.process_index() == 0 else None
    if jax.process_count() == 1:
        return values
    if not bool(multihost_utils.broadcast_one_to_all(np.asarray(values is not None))):
        return None
    return np.asarray(multihost_utils.broadcast_one_to_all(np.zeros(shape, np.float32) if values is None else values))
