"""Opens what a run has left on disk for reading: its configuration, a checkpoint, its report. It changes nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from smallr.core.errors import UserError
from smallr.core.files import FileError, read_json, write_json
from smallr.training.best import FILE as BEST
from smallr.training.digest import read_digest
from smallr.training.envelope import CheckpointError, DamagedError, root_cause, unseal

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

_READ_TOGETHER = 2**24  # elements
MODEL = "model.json"  # in the folder of a job: which of its runs it stands for


class SavedCheckpoint:
    """Reads one checkpoint, array by array; see `smallr.training.checkpoints` for the layout."""

    def __init__(self, folder: Path):
        """Reads the checkpoint's metadata.

        Raises:
          DamagedError: it is not what was saved.
        """
        self.folder = folder
        self.step = int(folder.name)
        self._envelope = unseal(folder.absolute() / "metadata" / "metadata", self.step)

    @property
    def metadata(self) -> dict[str, Any]:
        """Returns what the run saved beside the state."""
        return self._envelope["user"]

    @property
    def digest(self) -> str:
        """Returns the digest of all arrays, as they were saved."""
        return self._envelope["digest"]

    @property
    def leaves(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Returns dtype and shape of every array, by name."""
        return {name: (dtype, tuple(shape)) for name, (dtype, shape) in self._envelope["leaves"].items()}

    @cached_property
    def _handler(self) -> ocp.PyTreeCheckpointHandler:
        import orbax.checkpoint as ocp

        return ocp.PyTreeCheckpointHandler(use_compression=False)

    def read(self, name: str) -> np.ndarray:
        """Returns one whole array.

        Raises:
          DamagedError: its bytes cannot be read.
        """
        return self._read([name])[name]

    def _read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns some whole arrays; Orbax takes as long to begin with one as with many."""
        import orbax.checkpoint as ocp  # here, since most models that are opened are no checkpoints
        from etils import epath

        signatures = {name: self.leaves[name] for name in names}
        empty = {name: np.zeros(shape, dtype) for name, (dtype, shape) in signatures.items() if 0 in shape}
        stored = [name for name in names if name not in empty]
        args = ocp.args.PyTreeRestore(
            item=dict.fromkeys(stored, 0),
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in stored},
            partial_restore=True,
        )
        try:
            found = self._handler.restore(epath.Path(self.folder.absolute()) / "state", args=args) if stored else {}
        except Exception as error:  # Orbax has no one class for damage
            about = stored[0] if len(stored) == 1 else f"{stored[0]} … {stored[-1]} ({len(stored)} arrays)"
            raise DamagedError(f"{about}: {root_cause(error)}") from error
        return {name: found[name] if name in found else empty[name] for name in names}

    def verify(self) -> None:
        """Reads all arrays once and compares their digest with the one taken when they were saved.

        Raises:
          DamagedError: they differ.
        """
        if read_digest(self.leaves, map(self._read, self._parts())) != self.digest:
            raise DamagedError("the arrays are not those that were saved (digest)")

    def _parts(self) -> Iterator[list[str]]:
        """Yields the names of arrays that are read together, since more than that need not be held."""
        # One alone first: where that fails, Orbax has no other reads under way, each of which would log a traceback.
        part, held = [], _READ_TOGETHER
        for name, (_, shape) in sorted(self.leaves.items()):
            size = math.prod(shape)
            if part and held + size > _READ_TOGETHER:
                yield part
                part, held = [], 0
            part.append(name)
            held += size
        if part:
            yield part


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """Holds a run's workdir and one of its checkpoints, verified.

    Attributes:
      config: the run's configuration, as a nested dict.
    """

    workdir: Path
    config: dict[str, Any]
    checkpoint: SavedCheckpoint

    @cached_property
    def report(self) -> dict[str, Any]:
        """Returns `report.json` if it is of this checkpoint's step, else empty; a damaged one is warned of."""
        path = self.workdir / "report.json"
        try:
            report = read_json(path) if path.exists() else {}
        except FileError as error:
            logging.warning("%s; the run's report is left out", error)
            return {}
        return report if report.get("steps") == self.checkpoint.step else {}


def choose_run(folder: Path, run: Path) -> None:
    """Makes the folder of a job stand for one of the runs in it, wherever a model is named."""
    write_json(folder / MODEL, {"model": str(run.relative_to(folder))})


def find_run(path: Path) -> SavedRun | None:
    """Returns the run at `path`: a workdir, whose newest intact checkpoint is taken, or one checkpoint's folder.

    Of a run that has ended and kept its best checkpoint (`config.best`), that one is taken.

    The folder of a job that has chosen one of its runs (`choose_run`) is that run.

    Returns:
      None if `path` is neither.

    Raises:
      UserError: a run without a checkpoint, all of them damaged, or without its configuration.
    """
    if (path / MODEL).is_file():
        path /= read_json(path / MODEL, fields={"model": str})["model"]
    if (path / "checkpoints").is_dir():
        return _newest(path)
    if path.name.isdigit() and (path / "metadata" / "metadata").exists():
        return SavedRun(*_configuration(path.parent.parent), _intact(path))
    return None


def run_config(path: Path) -> dict[str, Any] | None:
    """Returns the configuration of the run at `path`, as `find_run` names one, without a look at its checkpoints.

    Raises:
      UserError: the run has no configuration that can be read.
    """
    if (path / "checkpoints").is_dir():
        return _configuration(path)[1]
    if path.name.isdigit() and (path / "metadata" / "metadata").exists():
        return _configuration(path.parent.parent)[1]
    return None


def _best_step(workdir: Path) -> int:
    """Returns the step of the checkpoint that stands for a run by its metric; 0: the newest one does."""
    path = workdir / BEST
    return read_json(path, fields={"step": int})["step"] if path.exists() else 0


def _newest(workdir: Path) -> SavedRun:
    folders = [folder for folder in (workdir / "checkpoints").iterdir() if folder.name.isdigit()]
    if not folders:
        raise UserError(f"{workdir}: the run has no checkpoint yet")
    found = _configuration(workdir)
    best = _best_step(workdir)
    for folder in sorted(folders, key=lambda folder: (int(folder.name) == best, int(folder.name)), reverse=True):
        try:
            return SavedRun(*found, _intact(folder))
        except CheckpointError as error:
            logging.warning("%s: trying the one before", error)
    raise CheckpointError(f"{workdir}: all {len(folders)} checkpoints are damaged")


def _intact(folder: Path) -> SavedCheckpoint:
    try:
        checkpoint = SavedCheckpoint(folder)
        checkpoint.verify()
    except DamagedError as error:
        raise CheckpointError(f"checkpoint {folder} is damaged ({error})") from error
    return checkpoint


def _configuration(workdir: Path) -> tuple[Path, dict[str, Any]]:
    path = workdir / "config.json"
    try:
        return workdir, read_json(path, fields={"config": dict})["config"]
    except FileError as error:
        raise UserError(f"{error}; so it is not known which model was trained: restore the file") from error
