"""Keeps metrics on disk, in `metrics.jsonl`, one JSON object a line, and hands them to trackers.

A line of `metrics.jsonl`:

    {"step": 10, "time": 1760000000.123, "split": "train", "loss": 0.6931, ...}

`step` counts finished steps, `time` is seconds since 1970. JSON has no NaN and no infinities: they are written
as the strings "NaN", "Infinity" and "-Infinity", which `float()` and `read_metrics` turn back.

Each line is one write of the operating system, so a kill loses at most the line being written. On resuming,
what the killed run logged after the checkpoint is removed: every (step, split) is in the file once.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from smallr.core.files import FileError, whole_file
from smallr.training.tracking import Tracker

_RESERVED = ("step", "time", "split")
_NOT_JSON = ("NaN", "Infinity", "-Infinity")


class MetricsWriter:
    """Appends metrics to `workdir/metrics.jsonl`, and passes each line on to trackers.

    Only process 0 writes; in the others every method does nothing.
    """

    def __init__(
        self,
        workdir: str | Path,
        resume_step: int = 0,
        open_trackers: Callable[[], Sequence[Tracker]] = tuple,
    ) -> None:
        """Opens the file, repairs a half-written last line, and drops lines of steps that will be taken again.

        Args:
          workdir: a local folder; made if it is missing.
          resume_step: finished steps of the checkpoint that the run goes on from. Later lines are dropped;
            0 is a run from the beginning, and drops all.
          open_trackers: opens what the lines go to besides; called in process 0, when the file is open.

        Raises:
          OSError: the folder cannot be written to, or something else is in the place of a file.
        """
        self._file: int | None = None
        self._trackers: Sequence[Tracker] = ()
        self._last: dict[str, dict[str, Any]] = {}
        self._known: set[tuple[int, str]] = set()
        if jax.process_index() != 0:
            return
        workdir = Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        if path.is_dir():
            raise FileError(f"{path} is a folder where a file should be: move it away")
        kept = [line for line in _intact_lines(path) if line["step"] <= resume_step] if resume_step else []
        _rewrite(path, kept)
        # A resumed loop may evaluate the checkpoint's step again; the first line stands.
        self._known = {(line["step"], line["split"]) for line in kept}
        self._last = {line["split"]: line for line in kept}
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._trackers = open_trackers()

    def write(self, step: int, metrics: Mapping[str, Any], split: str = "train") -> None:
        """Logs numbers of one step; a (step, split) that the file has already is left as it is.

        Args:
          step: finished steps.
          metrics: name -> number (Python, numpy or a jax array of size 1).
          split: what they were measured on, e.g. "train" or "eval".

        Raises:
          TypeError: a value that is not one number.
          ValueError: a metric named like a field of the line.
        """
        if self._file is None or (step, split) in self._known:
            return
        values = {name: _number(name, value) for name, value in metrics.items()}
        clash = [name for name in _RESERVED if name in values]
        if clash:
            raise ValueError(f"a metric cannot be named {clash[0]!r}: that is a field of the line itself")
        now = time.time()
        line = {"step": int(step), "time": round(now, 3), "split": split}
        os.write(self._file, _encode(line | values))
        self._known.add((step, split))
        self._last[split] = line | values
        for tracker in self._trackers:
            tracker.log(int(step), now, {f"{split}/{name}": value for name, value in values.items()})

    def last(self, split: str) -> dict[str, Any]:
        """Returns the newest line of a split, those of before the run was gone on with included; empty without one."""
        return self._last.get(split, {})

    def close(self) -> None:
        """Closes the file and the trackers; later writes do nothing."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        for tracker in self._trackers:
            tracker.close()
        self._trackers = ()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """Returns the lines of `workdir/metrics.jsonl` as dicts, with NaN and infinities; a half-written line is left out."""
    return [
        {name: float(value) if value in _NOT_JSON and name not in _RESERVED else value for name, value in line.items()}
        for line in _intact_lines(Path(workdir) / "metrics.jsonl")
    ]


def _intact_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    texts = path.read_bytes().split(b"\n")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if not (isinstance(line["step"], int) and isinstance(line["split"], str)):
                raise ValueError("not a line of metrics")
        except (ValueError, KeyError, TypeError, RecursionError):
            if number < len(texts):  # the last one is what a kill leaves
                logging.warning("%s line %d is not a line of metrics and is dropped", path, number)
            continue
        lines.append(line)
    return lines


def _rewrite(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replaces the file at once: a kill in here leaves the old one."""
    content = b"".join(_encode(line) for line in lines)
    if path.exists() and path.read_bytes() == content:
        return
    with whole_file(path, "wb") as file:
        file.write(content)


def _encode(line: Mapping[str, Any]) -> bytes:
    safe = {
        name: _name_of_non_finite(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in line.items()
    }
    return json.dumps(safe, allow_nan=False).encode() + b"\n"


def _name_of_non_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _number(name: str, value: Any) -> int | float:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind in "OSUMmc" or array.dtype.names:
        raise TypeError(f"metric {name!r} is not one number but {type(value).__name__} of shape {array.shape}")
    return int(array.item()) if array.dtype.kind in "iub" else float(array.item())
