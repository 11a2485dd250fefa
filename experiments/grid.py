"""A grid of runs that can be stopped at any moment: one folder a run, nothing computed twice.

    sft = [Run(f"sft-{seed}", {"arm": "sft", "seed": seed}) for seed in range(3)]
    dpo = [Run(f"dpo-{run.settings['seed']}", {**run.settings, "arm": "dpo", "beta": 0.1}, needs=(run,)) for run in sft]

    def work(run: Run, folder: Path, needs: list[Path]) -> dict[str, float]:
        ...  # trains in `folder` (and goes on there if it was begun before), reads the folders of the runs it needs
        return {"accuracy": 0.5}

    grid = Grid(Path("runs/mine"))
    rows = grid.go(sft + dpo, work)  # the metrics of all runs; the same call goes on after an interruption

A run's folder is `<out>/<name>-<digest>`. The digest is of its settings and of those of the runs it needs, so settings
that change make another run and leave the old one as it is. `result.json` in the folder says that the run is finished; it
appears at once or not at all. Put into the settings everything that the metrics depend on. `experiments.tables` makes CSV,
markdown and plots of the rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError

RESULT, SETTINGS = "result.json", "settings.json"


class Stopped(Exception):
    """Raised by `work` when a signal has ended a run early: the grid ends too, and the run goes on next time."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One cell of a grid.

    Attributes:
      name: readable, for people; it is part of the folder's name.
      settings: all that the metrics depend on, in JSON's types.
      needs: runs that come first, and whose folders the run may read.
    """

    name: str
    settings: Mapping[str, Any]
    needs: tuple[Run, ...] = ()

    @property
    def digest(self) -> str:
        """Eight hex digits of the settings, those of the needed runs included."""
        identity = json.dumps([dict(self.settings), [need.digest for need in self.needs]], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:8]


Work = Callable[[Run, Path, list[Path]], Mapping[str, float]]


class Grid:
    """Runs in folders under `out`.

    Args:
      out: folder of the grid.
      writes: False on processes that compute along but leave the files to another one.
    """

    def __init__(self, out: Path, *, writes: bool = True):
        self.out, self._writes = out, writes
        self._finished: dict[str, dict[str, Any]] = {}

    def folder(self, run: Run) -> Path:
        """Where the run's files are."""
        return self.out / f"{run.name}-{run.digest}"

    def result(self, run: Run) -> dict[str, Any] | None:
        """What `result.json` holds: `metrics` and `seconds`; None for a run that is not finished.

        Raises:
          UserError: the file is damaged.
        """
        path = self.folder(run) / RESULT
        if run.digest in self._finished:
            return self._finished[run.digest]
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            found["metrics"], found["seconds"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): delete it, and the run goes on from its folder"
            ) from error
        self._finished[run.digest] = found
        return found

    def go(self, runs: Sequence[Run], work: Work, share: tuple[int, int] = (0, 1)) -> list[dict[str, Any]]:
        """Does what is missing, in the order of `runs`.

        Args:
          runs: a run comes behind those that it needs.
          work: computes a run's metrics in its folder. It is called again with the same folder after an interruption.
          share: (i, n) takes the i-th of n parts, so that n machines with a common disk share the runs out.

        Returns:
          `rows` of all runs that are finished by then.

        Raises:
          UserError: a needed run is missing or comes later, two runs are one, or another process works on a run.
          Stopped: as raised by `work`.
        """
        check(runs)
        mine = part(runs, *share)
        for number, run in enumerate(mine, 1):
            if self.result(run) is None:
                print(f"[{number}/{len(mine)}] {run.name}", flush=True)
                self._do(run, work)
        return self.rows(runs)

    def rows(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Name, settings and metrics of each finished run, flat; nested settings have dotted names."""
        found = [(run, self.result(run)) for run in runs]
        return [
            {"run": run.name, **flat(run.settings), **result["metrics"], "seconds": result["seconds"]}
            for run, result in found
            if result is not None
        ]

    def _do(self, run: Run, work: Work) -> None:
        folder, start = self.folder(run), time.perf_counter()
        with self._locked(folder):
            if self._writes:
                (folder / SETTINGS).write_text(json.dumps(dict(run.settings), indent=2) + "\n")
            metrics = {k: float(v) for k, v in work(run, folder, [self.folder(need) for need in run.needs]).items()}
            result = {"name": run.name, "metrics": metrics, "seconds": time.perf_counter() - start}
            self._finished[run.digest] = result
            if self._writes:
                partial = folder / f"{RESULT}.partial"
                partial.write_text(json.dumps(result, indent=2) + "\n")
                partial.replace(folder / RESULT)
        print("  " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()), flush=True)

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Two processes in one folder would spoil each other's checkpoints."""
        if not self._writes:
            yield
            return
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{folder}: another process is working on this run") from error
            yield  # closing the file, or the end of the process, frees it


def check(runs: Sequence[Run]) -> None:
    """Whether the runs can be done in their order.

    Raises:
      UserError: they cannot.
    """
    seen: set[str] = set()
    for run in runs:
        missing = [need.name for need in run.needs if need.digest not in seen]
        if missing:
            raise UserError(f"run {run.name} needs {', '.join(missing)}, which must stand before it in the grid")
        if run.digest in seen:
            raise UserError(f"run {run.name}: another run has the same settings")
        seen.add(run.digest)


def part(runs: Sequence[Run], index: int, count: int) -> list[Run]:
    """The runs of one of `count` machines. Runs that are tied by their needs stay together.

    Raises:
      UserError: no such part.
    """
    if not 0 <= index < count:
        raise UserError(f"share {index}/{count}: parts are counted from 0 to {count - 1}")
    group: dict[str, int] = {}  # of each run, by digest
    for run in runs:
        tied = {group[need.digest] for need in run.needs}
        group[run.digest] = min(tied, default=len(group))
        for digest, other in group.items():
            if other in tied:
                group[digest] = group[run.digest]
    numbers = {old: new for new, old in enumerate(dict.fromkeys(group.values()))}
    return [run for run in runs if numbers[group[run.digest]] % count == index]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
