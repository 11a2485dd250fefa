"""Values of every example of a set, and reference log-probs kept on disk."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import numpy as np
from absl import logging
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float
from tqdm import tqdm

from smallr.core.cache import cache_dir
from smallr.data.batch import Batch
from smallr.training.digest import tree_digest
from smallr.training.objective import Objective
from smallr.training.splits import Split

# Part of the cache key: raise it when a change of the code changes the numbers.
VERSION = 3


def collect(
    function: Callable[[Batch], dict[str, Array]], batches: Iterable[Batch], examples: int
) -> dict[str, Float[np.ndarray, "examples"]]:
    """Runs `function` over batches and puts its [B, P] values in the order of the examples.

    `function` reports the index of each example as `example` (-1: no example there).

    Raises:
      RuntimeError: an example that no batch had.
    """
    seen = np.zeros(examples, bool)
    values: dict[str, np.ndarray] = {}
    for batch in batches:
        output = jax.device_get(function(batch))
        index = output.pop("example")
        real = index >= 0
        seen[index[real]] = True
        for name, value in output.items():
            values.setdefault(name, np.zeros(examples, value.dtype))[index[real]] = value[real]
    if not seen.all():
        raise RuntimeError(f"{(~seen).sum()} of {examples} examples were in no batch")
    return values


def add_reference(
    split: Split,
    objective: Objective,
    evaluation: Callable[..., dict[str, Array]],
    params: nnx.State,
    mesh: Mesh,
    dtype: str,
    weights: str | None = None,
) -> tuple[Split, bool]:
    """The split with a column `ref_<side>` for each side of an example: summed log-probs under `params`.

    They are computed once, with the program that evaluates the policy and on the rows of the first epoch, and kept
    on disk under a hash of the weights, the tokenised data and the compute dtype. In bfloat16 the place of
    an example in a row moves its log-prob by tenths of a nat (the order of sums differs, and rounding
    amplifies it), and so does another program. There the rows, the backend and JAX's version are part of the
    hash: policy and reference round alike, and the first loss is ln 2. `weights` stands for the weights in the
    hash, where `params` are not all of them.

    Returns:
      The split, and whether the values came from the disk.
    """
    names = [f"ref_{side}" for side in objective.sides]
    plan = split.plan
    rounding = ""
    if dtype != "float32":
        rounding = f"{plan.shape} {plan.rows_per_step} {plan.seed} {plan.shuffle} {plan.window} "
        rounding += f"{jax.default_backend()} {jax.__version__}"
    weights = weights or tree_digest(params)
    identity = f"{VERSION} {weights} {split.examples.fingerprint} {dtype} {objective.reference_key} {rounding}"
    path = cache_dir("reference") / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"
    values = _read(path, (len(names), len(split.examples)))
    if values is not None:
        return split.with_columns(**dict(zip(names, values, strict=True))), True
    # The evaluation subtracts the reference, but reports the policy's own scores too: any reference will do.
    blank = split.with_columns(**{name: np.zeros(len(split.examples), np.float32) for name in names})
    bar = tqdm(
        blank.one_pass(mesh),
        total=blank.plan.num_steps(1),
        desc=f"reference log-probs, {split.name}",
        unit="batch",
        mininterval=0.5 if sys.stderr.isatty() else 20,  # a log file wants few lines
        disable=jax.process_index() > 0,
    )
    found = collect(lambda batch: evaluation(params, batch, None), bar, len(split.examples))
    values = np.stack([found[f"score_{side}"] for side in objective.sides])
    if jax.process_index() == 0:
        partial = path.with_suffix(".partial.npy")
        np.save(partial, values, allow_pickle=False)
        partial.replace(path)
    return split.with_columns(**dict(zip(names, values, strict=True))), False


def remembered(identity: str, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Metrics that were computed before for the same `identity`, else `compute()`; kept on disk.

    Where they were computed before, processes other than 0 get an empty dict: they have no use for metrics.
    """
    path = cache_dir("evaluation") / f"{hashlib.sha256(f'{VERSION} {identity}'.encode()).hexdigest()[:32]}.json"
    known = None
    if jax.process_index() == 0 and path.exists():
        try:
            known = json.loads(path.read_text())
        except (ValueError, OSError) as error:
            logging.warning("%s cannot be read (%s): evaluating again", path, error)
    if _agreed(known is not None):
        return known or {}
    metrics = compute()
    if jax.process_index() == 0:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(metrics))
        partial.replace(path)
    return metrics


def _agreed(known: bool) -> bool:
    """Process 0 decides for all: the others may not see its disk, and all must run the same programs."""
    return known if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.asarray(known)))


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The cached values, on all processes or on none."""
    values = None
    if jax.process_index() == 0 and path.exists():
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            logging.warning("%s cannot be read (%s): computing the reference again", path, error)
        if values is not None and values.shape != shape:
            values = None
    if not _agreed(values is not None):
        return None
    if jax.process_count() == 1:
        return values
    return np.asarray(multihost_utils.broadcast_one_to_all(np.zeros(shape, np.float32) if values is None else values))
