"""Hands the metrics of a run to the trackers that people look at: TensorBoard, Weights & Biases, Trackio, MLflow.

`metrics.jsonl` in the workdir is the record; a tracker is a view of it. So one that fails while the run goes on is given
up with a warning, and the run goes on. What identifies the run to a tracker is kept in `tracking.json` in the workdir: a
resumed run goes on in the same curves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from absl import logging
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.core.files import FileError, read_json, write_json

FILE = "tracking.json"
NAMES = ("tensorboard", "wandb", "trackio", "mlflow")  # smallr itself needs what writes TensorBoard's files


class Tracker(Protocol):
    """Takes metrics; a line is complete when `log` returns, as far as the tracker allows."""

    def log(self, step: int, when: float, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of a step, named split/metric, measured at a time (seconds since 1970)."""

    def close(self) -> None:
        """Ends the run in the tracker."""


def check_trackers(names: Sequence[str]) -> None:
    """Checks the names of trackers, and that what they need is installed, without importing it.

    Raises:
      UserError: a tracker that does not exist, or is not installed.
    """
    for name in names:
        if name not in NAMES:
            nearest = difflib.get_close_matches(name, NAMES, n=1)
            meant = f"did you mean {nearest[0]}? " if nearest else ""
            raise UserError(f"config.track.to: {name!r}: {meant}must be of: {', '.join(NAMES)}")
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise UserError(f"config.track.to: {name} is not installed: pip install {name}")


def open_trackers(config: ConfigDict, workdir: Path, resume_step: int) -> list[Tracker]:
    """Opens the trackers of `config.track`; process 0 alone calls it.

    Raises:
      UserError: a tracker does not exist, is not installed, or refuses the run: it has no key, no server …
    """
    check_trackers(config.track.to)
    run = _Run(config.track.project, config.track.name or "-".join(workdir.absolute().parts[-2:]), workdir, config)
    path = workdir / FILE
    known = read_json(path) if path.exists() else {}
    trackers: list[Tracker] = []
    for name in config.track.to:
        if name == "tensorboard":
            trackers.append(TensorBoard(workdir / "tensorboard", resume_step))
            continue
        try:
            opened, known[name] = _OPEN[name](run, known.get(name))
        except Exception as error:
            with contextlib.suppress(Exception):
                close_all(trackers)
            raise UserError(f"config.track.to: {name} cannot be opened: {error}") from error
        trackers.append(_Patient(name, opened))
    if known:
        write_json(path, known)
    return trackers


def close_all(trackers: Sequence[Tracker]) -> None:
    """Closes trackers."""
    for tracker in trackers:
        tracker.close()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Hides PyTorch from tensorboardX, which imports it for tensors, which nobody logs here: seconds of every start."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        if sys.modules["torch"] is None:
            del sys.modules["torch"]


class TensorBoard:
    """Writes event files."""

    def __init__(self, folder: Path, resume_step: int):
        """Opens an event file of its own; it tells TensorBoard to forget what earlier files have of later steps.

        Raises:
          FileError: a file is in the folder's place.
        """
        with _without_torch():  # here, since names are checked before slow imports
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

        if folder.is_file():
            raise FileError(f"{folder} is a file where a folder should be: move it away")
        earlier = folder.exists() and any(folder.iterdir())
        folder.mkdir(exist_ok=True)
        # tensorboardX's SummaryWriter would do, but hands events to a thread that a kill takes along.
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{time.time_ns()}")
        if earlier:
            start = SessionLog(status=SessionLog.START)
            step = resume_step + 1 if resume_step else 0
            self._writer.write_event(Event(wall_time=time.time(), step=step, session_log=start))
        self._writer.flush()

    def log(self, step: int, when: float, metrics: Mapping[str, float]) -> None:
        """Writes an event."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.write_event(Event(wall_time=when, step=step, summary=Summary(value=scalars)))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class _Patient:
    """Passes lines on until the tracker fails; from then on the run does without it."""

    def __init__(self, name: str, tracker: Tracker):
        self._name, self._tracker = name, tracker

    def log(self, step: int, when: float, metrics: Mapping[str, float]) -> None:
        self._try(lambda: self._tracker.log(step, when, metrics))

    def close(self) -> None:
        self._try(lambda: self._tracker.close())

    def _try(self, action: Callable[[], None]) -> None:
        if self._tracker is None:
            return
        try:
            action()
        except Exception as error:  # a library's own, of the network or of its server
            logging.warning("%s failed and is left alone from here on (metrics.jsonl goes on): %s", self._name, error)
            self._tracker = None


class _Wandb:
    """Logs to Weights & Biases; WANDB_MODE=offline keeps the run on disk, as always."""

    def __init__(self, run: Any):
        self._run = run
        run.define_metric("*", step_metric="step")  # its own counter refuses steps that a resumed run takes again

    def log(self, step: int, when: float, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Logs to Trackio, whose runs are on this disk unless TRACKIO_SPACE_ID names a space."""

    def __init__(self, run: Any):
        self._run = run

    def log(self, step: int, when: float, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    """Logs to the MLflow server that MLFLOW_TRACKING_URI names, or to its files."""

    def __init__(self, client: Any, run: str):
        self._client, self._run = client, run

    def log(self, step: int, when: float, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        values = [Metric(name, value, int(1000 * when), step) for name, value in metrics.items()]
        self._client.log_batch(self._run, metrics=values)

    def close(self) -> None:
        self._client.set_terminated(self._run)


@dataclasses.dataclass(frozen=True)
class _Run:
    """Holds what a tracker is told of a run."""

    project: str
    name: str
    workdir: Path
    config: ConfigDict

    def fields(self) -> dict[str, Any]:
        """Returns the configuration as JSON has it."""
        return json.loads(self.config.to_json_best_effort())


Opened = tuple[Tracker, str]  # and what identifies the run to the tracker


def _open_wandb(run: _Run, known: str | None) -> Opened:
    import wandb

    identity = known or secrets.token_hex(8)
    opened = wandb.init(
        project=run.project,
        name=run.name,
        id=identity,
        resume="allow",
        dir=str(run.workdir),
        config=run.fields(),
    )
    return _Wandb(opened), identity


def _open_trackio(run: _Run, known: str | None) -> Opened:
    import trackio

    name = known or f"{run.name}-{secrets.token_hex(3)}"  # a name is all that tells its runs apart
    opened = trackio.init(
        project=run.project,
        name=name,
        resume="allow",
        config=run.fields(),
        space_id=os.environ.get("TRACKIO_SPACE_ID"),
    )
    return _Trackio(opened), name


def _open_mlflow(run: _Run, known: str | None) -> Opened:
    from mlflow import MlflowClient
    from mlflow.entities import Param

    client = MlflowClient()
    if known is not None:
        client.update_run(known, status="RUNNING")
        return _MLflow(client, known), known
    experiment = client.get_experiment_by_name(run.project)
    identity = experiment.experiment_id if experiment else client.create_experiment(run.project)
    created = client.create_run(identity, run_name=run.name).info.run_id
    flat = _flat(run.fields())
    client.log_batch(created, params=[Param(name, str(value)[:500]) for name, value in flat.items()])
    return _MLflow(client, created), created


_OPEN: dict[str, Callable[[_Run, str | None], Opened]] = {
    "wandb": _open_wandb,
    "trackio": _open_trackio,
    "mlflow": _open_mlflow,
}


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
