"""Reference log-probs of a set of rows, computed once and kept on disk under all that their bits depend on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Float
from tqdm import tqdm

from smallr.core.cache import cache_dir
from smallr.core.files import whole_file
from smallr.training.evaluation import collect
from smallr.training.progress import log
from smallr.training.splits import Split

if TYPE_CHECKING:
    from smallr.training.step import Evaluation

Scores = Float[np.ndarray, "completions examples"]
_DIGEST = hashlib.sha256().digest_size


def cached_columns(
    split: Split, evaluation: Evaluation, abstract: nnx.State, digest: str, mesh: Mesh, weights: Callable[[], nnx.State]
) -> Split:
    """Adds a column `ref_<name>` for each completion of an example: its summed log-probs under the reference.

    They are computed with the program that evaluates the policy and on the rows of the first epoch. The position of
    an example in a row decides in which order its sums are rounded; in bfloat16 that moves a log-prob by tenths of a nat. So
    policy and reference round alike, and the first loss is ln 2. For the same reason the key of the cache has the
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
    key = scores_key(blank, evaluation, abstract, digest, mesh)
    values = _read(key, (len(names), len(split.examples)))
    if values is not None:
        log(f"reference log-probs, {split.name}: from the cache; weights, rows and program are those of an earlier run")
    else:
        values = _computed(blank, evaluation, weights(), mesh)
        if jax.process_index() == 0:
            _write(key, values)
    return dataclasses.replace(split.with_columns(**dict(zip(names, values, strict=True))), reference=digest)


def scores_key(split: Split, evaluation: Evaluation, params: nnx.State, digest: str, mesh: Mesh) -> str:
    """Hashes weights, tokens, the layout of rows, the program and what compiles and runs it."""
    batch = next(split.batches(mesh, 0, 1))
    parts = {
        "weights": digest,
        "rows": split.examples.fingerprint,
        "layout": split.layout_digest(),
        "program": hashlib.sha256(evaluation.program_text(params, batch).encode()).hexdigest(),
        "mesh": [list(mesh.shape.items()), jax.process_count()],
        "platform": [jax.default_backend(), jax.devices()[0].device_kind, jax.__version__],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _computed(split: Split, evaluation: Evaluation, params: nnx.State, mesh: Mesh) -> Scores:
    bar = tqdm(
        split.one_pass(mesh),
        total=split.plan.num_steps(1),
        desc=f"reference log-probs, {split.name}",
        unit="batch",
        mininterval=0.5 if sys.stderr.isatty() else 20,  # a log file wants few lines
        disable=jax.process_index() > 0,
    )
    found = collect(lambda batch: evaluation(params, batch), bar, len(split.examples))
    return np.stack([found[f"score_{name}"] for name in split.completion_names]).astype(np.float32)


def _read(key: str, shape: tuple[int, ...]) -> Scores | None:
    """Returns the cached values, on all processes or on none: process 0 decides, since the others may not see its disk."""
    values = _stored(key, shape) if jax.process_index() == 0 else None
    if jax.process_count() == 1:
        return values
    if not bool(multihost_utils.broadcast_one_to_all(np.asarray(values is not None))):
        return None
    return np.asarray(multihost_utils.broadcast_one_to_all(np.zeros(shape, np.float32) if values is None else values))


def _stored(key: str, shape: tuple[int, ...]) -> Scores | None:
    try:
        path = cache_dir("reference") / f"{key}.scores"
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        logging.warning("the cache of reference log-probs cannot be read (%s): computing them", error)
        return None
    data = content[_DIGEST:]
    if hashlib.sha256(data).digest() != content[:_DIGEST] or len(data) != 4 * int(np.prod(shape)):
        logging.warning("%s is damaged: computing the reference again", path)
        return None
    return np.frombuffer(data, "<f4").reshape(shape)


def _write(key: str, values: Scores) -> None:
    """Writes a digest and the values; a cache that cannot be written is only warned of."""
    data = np.ascontiguousarray(values, "<f4").tobytes()
    try:
        with whole_file(cache_dir("reference") / f"{key}.scores", "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
    except OSError as error:
        logging.warning("the reference log-probs cannot be kept (%s): the next run computes them again", error)
