"""Manages the folder of a run: its lock, configuration, checkpoints and metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from smallr.core.locks import FolderLock
from smallr.training.checkpoints import Checkpointer
from smallr.training.metrics import MetricsWriter, read_metrics
from smallr.training.optimizer import Horizon
from smallr.training.progress import log
from smallr.training.resume import check_config, check_data, earlier_run, save_config
from smallr.training.tracking import open_trackers


class Workdir:
    """Holds a run's folder for this process until it is closed.

    Args:
      path: of the folder; made if it is missing.
      config: of the run.

    Attributes:
      path: as given.
      checkpointer: of the run.
      horizons: of the learning rate of the run that made the checkpoints; empty without checkpoints.
      attention: that it computed with; likewise.

    Raises:
      UserError: another run in the folder, checkpoints of another configuration, or a folder that cannot be written.
    """

    def __init__(self, path: Path, config: ConfigDict):
        self.path, self._config = path, config
        self._writer: MetricsWriter | None = None
        self._lock = FolderLock(path)
        self._closed = False
        self._is_new = jax.process_index() == 0 and not path.exists()
        if jax.process_index() == 0:
            self._lock.acquire()
        try:
            self.checkpointer = Checkpointer(
                str(path / "checkpoints"), config.checkpoint.keep_last, config.checkpoint.keep_every
            )
            self._earlier = earlier_run(path)
            if self._earlier is not None:
                for note in check_config(path, self._earlier, config):
                    log(note)
            self.horizons: tuple[Horizon, ...] = self._earlier.horizons if self._earlier else ()
            self.attention: Mapping[str, Any] = self._earlier.attention if self._earlier else {}
        except BaseException:
            self._lock.release()
            raise

    def check_data(self, fingerprint: str) -> None:
        """Raises UserError where the training rows are not those of the checkpoints."""
        if self._earlier is not None:
            check_data(self.path, self._earlier, self._config, fingerprint)

    def save_config(self, fingerprint: str, horizons: Sequence[Horizon], attention: Mapping[str, Any]) -> None:
        """Writes the configuration, the fingerprint of the training rows, the horizons and the attention."""
        save_config(self.path, self._config, fingerprint, horizons, attention)

    def open_metrics(self, step: int) -> bool:
        """Opens the files of metrics of a run that is at `step`; returns whether they were not open yet."""
        if self._writer is not None:
            return False
        self._writer = MetricsWriter(self.path, step, lambda: open_trackers(self._config, self.path, step))
        return True

    def write_metrics(self, step: int, metrics: Mapping[str, float], split: str) -> None:
        """Writes a line of metrics, if their files are open."""
        if self._writer is not None:
            self._writer.write(step, metrics, split)

    def evaluations(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics on disk that are of the held-out rows."""
        return [line for line in read_metrics(self.path) if line["split"] == "eval"]

    def last_metrics(self, split: str) -> Mapping[str, float]:
        """Returns the newest line of a split; empty without one."""
        return self._writer.last(split) if self._writer is not None else {}

    def close(self) -> None:
        """Waits for a checkpoint on its way to the disk, and frees the folder. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self.checkpointer.close()
        finally:
            if self._writer is not None:
                self._writer.close()
            self._lock.release()
            if self._is_new:  # a run that failed before it wrote anything leaves no folder
                for folder in (self.path / "checkpoints", self.path):
                    with contextlib.suppress(OSError):
                        folder.rmdir()
