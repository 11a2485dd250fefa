"""Saves and restores checkpoints: all that a run needs to go on bit for bit, in one folder that appears at once or not at all.

On disk (Orbax; no pickle anywhere):

    <directory>/<step>/state/               the arrays: OCDBT + Zarr, uncompressed, one flat mapping name -> array
    <directory>/<step>/metadata/metadata    JSON: format, step, digest, leaves {name: [dtype, shape]}, user, checksum
    <directory>/<step>.orbax-checkpoint-tmp-…   a save under way, renamed when complete; left by a kill: removed
    <directory>/damaged-<step>              a checkpoint that could not be restored, moved out of the way

Names are those of `digest.named_leaves` ("params/layers/attention/q"), so the layout does not depend on
Python classes, and `digest` is `tree_digest` of the state. Arrays of size zero have no data: they live in
`leaves` alone. Typed PRNG keys are stored as their uint32 data. `checksum` is the sha256 of the other
entries, so that a flipped bit in the run's own metadata is noticed as well.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from smallr.core.errors import UserError
from smallr.training.digest import leaf_signature, named_digest, named_leaves
from smallr.training.envelope import FORMAT, CheckpointError, DamagedError, root_cause, seal, unseal

_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_SHOWN = 8  # differing leaves in an error message


class StructureMismatchError(UserError):
    """Says that the checkpoint is intact but holds another state: other names, shapes or dtypes."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """Holds a checkpoint read back: `state` has the tree and the shardings that were asked for."""

    state: Any
    metadata: dict[str, Any]
    step: int


class _Best:
    """Keeps the checkpoint that is the best one at the time."""

    def __init__(self, checkpointer: Checkpointer):
        self._checkpointer = checkpointer

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        return [checkpoint.step == self._checkpointer.best for checkpoint in checkpoints]


class Checkpointer:
    """Writes checkpoints in the background and restores the newest intact one.

    Attributes:
      best: step of a checkpoint that stays whatever its age; 0: none.

    In a run of several processes each makes one, on a shared file system, and all call the same methods.
    """

    def __init__(self, directory: str | os.PathLike[str], keep_last: int = 2, keep_every: int = 0) -> None:
        """Opens (and creates) the folder and removes what a killed save has left.

        Args:
          directory: the folder of this run's checkpoints; nothing else should write to it.
          keep_last: the newest so many checkpoints stay.
          keep_every: checkpoints of steps divisible by it stay for good; 0: none.

        Raises:
          ValueError: `keep_last` < 1 or `keep_every` < 0.
          UserError: the folder cannot be made or written to.
        """
        if keep_last < 1 or keep_every < 0:
            raise ValueError(
                f"config.checkpoint: keep_last must be at least 1 and keep_every at least 0, not {keep_last}, {keep_every}"
            )
        self._directory = epath.Path(directory).absolute() if "://" not in str(directory) else epath.Path(directory)
        _check_writable(self._directory)
        self.best = 0
        policies = [LatestN(keep_last), _Best(self)] + ([EveryNSteps(keep_every)] if keep_every else [])
        policy = AnyPreservationPolicy(policies)
        # Float weights hardly compress, and zstd would take longer than the disk.
        self._handler = ocp.PyTreeCheckpointHandler(use_compression=False)
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_handlers={"state": self._handler, "metadata": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(cleanup_tmp_directories=True, preservation_policy=policy),
        )

    def save(self, step: int, state: Any, metadata: Mapping[str, Any]) -> bool:
        """Saves the state as of now; returns once it is copied from the devices.

        A previous save that is still being written is waited for first, so at most one copy of the state
        is held in host memory. The caller may donate the state's buffers right after.

        Args:
          step: the number of finished steps.
          state: any pytree of jax arrays (sharded or not), numpy arrays or numbers.
          metadata: what JSON can hold: the configuration, the position in the data, fingerprints.

        Returns:
          False when a checkpoint of this step exists already (then nothing is written).

        Raises:
          TypeError: `metadata` is not JSON, or a leaf is not an array of numbers.
          CheckpointError: this save could not start, or the one before failed in the background.
        """
        self.wait()
        if step in self._manager.all_steps():
            return False
        leaves = named_leaves(state)
        arrays = {name: _storable(leaf) for name, leaf in leaves.items()}
        arrays = {name: array for name, array in arrays.items() if array.size}
        if not arrays:
            raise ValueError("the state to save has no data: no leaf has a size above zero")
        envelope = seal(
            {
                "format": FORMAT,
                "step": step,
                "digest": named_digest(leaves),
                "leaves": {name: list(leaf_signature(leaf)) for name, leaf in leaves.items()},
                "user": _as_json(metadata),
            }
        )
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(arrays), metadata=ocp.args.JsonSave(envelope))
        with self._save_errors():
            self._manager.save(step, args=items, force=True)
        return True

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, intact or not; waits for a save under way."""
        self.wait()
        return self._manager.latest_step()

    def restore_latest(self, abstract_state: Any) -> Restored | None:
        """Returns the newest checkpoint that is intact, or None when there is no checkpoint at all.

        The digest of the restored arrays is compared with the one taken when they were saved. A damaged
        checkpoint is passed over with a warning, and renamed `damaged-<step>` once an older one is
        restored, so that the run can save that step again.

        Args:
          abstract_state: the tree to fill: `jax.ShapeDtypeStruct` with a sharding (or a jax array, whose
            sharding is taken) for a jax array, a numpy array or a number for a numpy array. The mesh may
            differ from the one at the time of saving.

        Raises:
          StructureMismatchError: the newest readable checkpoint has other names, shapes or dtypes.
          ValueError: a leaf of `abstract_state` has no sharding, or one that does not fit its shape.
          CheckpointError: there are checkpoints and all are damaged.
        """
        self.wait()
        targets = named_leaves(abstract_state)
        for name, leaf in targets.items():
            _check_sharding(name, leaf)
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                envelope, leaves = self._read(step, targets)
            except DamagedError as error:
                damaged[step] = str(error)
                logging.warning(
                    "checkpoint %s is damaged (%s): trying the one before", self._directory / str(step), error
                )
                continue
            self._set_aside(damaged)
            tree = jax.tree.unflatten(jax.tree.structure(abstract_state), [leaves[name] for name in targets])
            return Restored(state=tree, metadata=envelope["user"], step=step)
        if damaged:
            reasons = "".join(f"\n  {self._directory / str(step)}: {reason}" for step, reason in damaged.items())
            raise CheckpointError(
                f"no checkpoint can be restored, all are damaged:{reasons}\n"
                "Restore one from a copy, or delete these folders to start from the beginning."
            )
        return None

    def wait(self) -> None:
        """Returns when no save is under way.

        Raises:
          CheckpointError: the save failed; its checkpoint does not exist. The error stays: later calls raise it
            again, and a new process goes on from the checkpoint before.
        """
        with self._save_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save under way and frees the threads; the object is of no use afterwards."""
        with self._save_errors():
            self._manager.close()

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise CheckpointError(f"a checkpoint could not be written to {self._directory}: {error}") from error

    def _read(self, step: int, targets: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads and verifies the envelope and the leaves of one checkpoint; all processes agree on the outcome."""
        folder = self._directory / str(step)
        with _same_on_all_processes():
            envelope = unseal(folder / "metadata" / "metadata", step)
        differences = _differences(envelope["leaves"], targets)
        if differences:
            raise StructureMismatchError(_mismatch_message(folder, differences))
        with _same_on_all_processes():
            leaves = _read_arrays(self._handler, folder / "state", targets)
        digest = named_digest(leaves)
        if digest != envelope["digest"]:
            raise DamagedError(
                f"the arrays are not those that were saved (digest {digest[:12]}…, saved {envelope['digest'][:12]}…)"
            )
        return envelope, leaves

    def _set_aside(self, damaged: Collection[int]) -> None:
        for step in damaged:
            folder = self._directory / str(step)
            target = self._directory / f"damaged-{step}"
            count = 1
            while target.exists():
                count += 1
                target = self._directory / f"damaged-{step}.{count}"
            if jax.process_index() == 0:
                folder.rename(target)
            logging.warning("damaged checkpoint %s was moved to %s; it can be deleted", folder, target)
        if damaged:
            _barrier("smallr:damaged-checkpoints-moved")
            self._manager.reload()


def _check_writable(directory: epath.Path) -> None:
    problem = ""
    if jax.process_index() == 0:
        probe = directory / ".writable"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            problem = f"{type(error).__name__}: {error}"
    if not _all_true(not problem):
        raise UserError(
            f"checkpoints cannot be written to {directory} ({problem or 'process 0 failed'}); choose another workdir"
        )


def _storable(leaf: Any) -> jax.Array | np.ndarray:
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_device_leaf(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def _check_sharding(name: str, leaf: Any) -> None:
    if not _is_device_leaf(leaf):
        return
    if leaf.sharding is None:
        raise ValueError(f"abstract_state: {name!r} has no sharding, so it is not known where to put it")
    if not _is_key(leaf):
        try:
            leaf.sharding.shard_shape(leaf.shape)
        except ValueError as error:
            raise ValueError(f"abstract_state: the sharding of {name!r} does not fit its shape: {error}") from error


def _read_arrays(
    handler: ocp.PyTreeCheckpointHandler, folder: epath.Path, targets: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the leaves of `targets` from disk, on their shardings."""
    stored = {
        name: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf for name, leaf in targets.items()
    }
    arguments: dict[str, ocp.RestoreArgs] = {}
    for name, leaf in stored.items():
        if 0 in np.shape(leaf):
            continue
        if _is_device_leaf(leaf):
            arguments[name] = ocp.ArrayRestoreArgs(
                restore_type=jax.Array, sharding=targets[name].sharding, global_shape=leaf.shape, dtype=leaf.dtype
            )
        else:
            arguments[name] = ocp.RestoreArgs(restore_type=np.ndarray)
    # Read through the handler, not the manager: the manager's barriers would hang the other processes when one
    # of them meets a damaged file.
    arrays = handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=arguments))
    return {name: _as_target(arrays.get(name), leaf) for name, leaf in targets.items()}


def _as_target(array: Any, target: Any) -> Any:
    if not _is_device_leaf(target):
        return np.zeros(np.shape(target), np.asarray(target).dtype) if array is None else array
    if array is None:
        return jax.make_array_from_callback(
            target.shape, target.sharding, lambda index: np.zeros(target.shape, target.dtype)[index]
        )
    return jax.random.wrap_key_data(array, impl=_key_impl(target)) if _is_key(target) else array


def _key_impl(target: Any) -> Any:
    impl = []
    jax.eval_shape(
        lambda keys: impl.append(jax.random.key_impl(keys)), jax.ShapeDtypeStruct(target.shape, target.dtype)
    )
    return impl[0]


def _as_json(metadata: Mapping[str, Any]) -> Any:
    try:
        return json.loads(json.dumps(metadata))
    except (TypeError, ValueError) as error:
        raise TypeError(f"the metadata of a checkpoint must be JSON: {error}") from error


def _differences(saved: Mapping[str, Any], targets: Mapping[str, Any]) -> list[str]:
    def show(signature: Any) -> str:
        return f"{signature[0]}[{', '.join(map(str, signature[1]))}]"

    wanted = {name: list(leaf_signature(leaf)) for name, leaf in targets.items()}
    lines = []
    for name in sorted(saved.keys() | wanted.keys()):
        if name not in saved:
            lines.append(f"{name}: not in the checkpoint, this run has {show(wanted[name])}")
        elif name not in wanted:
            lines.append(f"{name}: the checkpoint has {show(saved[name])}, this run does not")
        elif show(saved[name]) != show(wanted[name]):
            lines.append(f"{name}: the checkpoint has {show(saved[name])}, this run {show(wanted[name])}")
    return lines


def _mismatch_message(folder: epath.Path, differences: list[str]) -> str:
    shown = "".join(f"\n  {line}" for line in differences[:_SHOWN])
    more = f"\n  … and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return (
        f"checkpoint {folder} holds another model or optimizer than this run:{shown}{more}\n"
        "Use the configuration it was made with, or another workdir."
    )


@contextlib.contextmanager
def _same_on_all_processes() -> Iterator[None]:
    """Turns a failure to read into `DamagedError`, in all processes if it happens in one of them."""
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    everywhere = _all_true(failure is None)
    if failure is not None and not _is_damage(failure):
        raise failure
    if isinstance(failure, DamagedError):
        raise failure
    if failure is not None:
        raise DamagedError(root_cause(failure)) from failure
    if not everywhere:
        raise DamagedError("another process could not read it")


def _is_damage(error: Exception) -> bool:
    """Returns whether reading failed for what is in the files, not for memory, rights or the devices."""
    if isinstance(error, MemoryError | CheckpointError | jax.errors.JaxRuntimeError):
        return False
    if isinstance(error, OSError) and error.errno in _NOT_DAMAGE:
        return False
    return not any(word in str(error) for word in ("PERMISSION_DENIED", "RESOURCE_EXHAUSTED"))


def _all_true(value: bool) -> bool:
    if jax.process_count() == 1:
        return value
    return bool(np.all(multihost_utils.process_allgather(np.asarray(value))))


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
