"""Runs a long job in stages: each has a folder, is finished at once or not at all, and is never computed twice.

A method names its stages, with what they are made of, and then has them run:

    stages = Stages(Path("runs/mine"))
    tuned = stages.do("tuning", tune, config.tuning, rows)       # tune(folder, config, rows) trains in its folder
    pairs = stages.make("pairs", prefer_useful, tuned, rows)     # prefer_useful(value of tuning, rows) gives rows
    stages.run()                                                 # shows a table, and does what is missing
    pairs = stages.value(pairs)

A grid has many stages that are done by the same function:

    sft = [Stage(f"sft-{seed}", {"arm": "sft", "seed": seed}) for seed in range(3)]
    dpo = [Stage(f"dpo-{seed}", {"arm": "dpo", "seed": seed}, needs=(sft[seed],)) for seed in range(3)]
    rows = stages.run([*sft, *dpo], work)   # work(stage, folder, folders of what it needs) gives metrics

A stage's folder is `<out>/<name>-<digest>`. The digest is of its settings, its inputs and the stages that it needs, so a change
makes another stage and leaves the old one as it is. Put into the settings all that the result depends on. In the folder
`run.json` says what was asked for, and `result.json` appears when the stage is finished. The folder is locked while a
process works in it. `smallr stages FOLDER` shows where a job stands; `smallr.core.stage_table` makes that table.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from smallr.core.errors import UserError
from smallr.core.files import FileError, read_json, remove_leftovers, write_json
from smallr.core.journal import Journal
from smallr.core.locks import LOCK, FolderLock
from smallr.core.stage_values import differences, find, flat, identity_of, load, replace, save

RUN, RESULT, PLAN = "run.json", "result.json", "stages.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@=,-]*")


class Stopped(UserError):
    """Says that a job ended early, by a signal or because it could not go on; the same command continues it."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Describes one step of a job.

    Attributes:
      name: readable, for people; it is the beginning of the folder's name.
      settings: all that the result depends on, in JSON's types.
      needs: stages that come first, and whose results it reads.
    """

    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} cannot be a stage's name: letters, digits and ._+@=,- make one")

    @functools.cached_property
    def digest(self) -> str:
        """Returns eight hex digits of the settings, those of the needed stages included."""
        identity = json.dumps([dict(self.settings), [need.digest for need in self.needs]], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:8]

    def __hash__(self) -> int:
        return hash((self.name, self.digest))


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds what a finished stage has left.

    Attributes:
      value: as its function gave it.
      seconds: that its last session took.
    """

    value: Any
    seconds: float


Work = Callable[[Stage, Path, list[Path]], Any]


class StageFolder:
    """Guards the folder of one stage: who may work there, what was asked for, what is finished.

        with StageFolder(folder, settings, what="evaluation") as stage:
            answers = stage.journal()           # finished pieces, kept over a kill
            ...
            stage.finish({"accuracy": 0.5})

    Args:
      path: made if it is missing.
      settings: what must be the same for earlier work in the folder to be used again.
      name: of the stage.
      what: the job, for messages.
      pieces: name of the file of finished pieces.
      files: names of other files and folders that are written there whole; a killed process may have left half of one.

    Raises (when it is entered):
      LockedError: another process works there.
      UserError: the folder holds another job, or something else; the differences are named.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        name: str = "",
        what: str = "stage",
        pieces: str = "journal.jsonl",
        files: Sequence[str] = (),
    ):
        self.path, self.settings = path, dict(settings)
        self._name, self._what, self._pieces = name or path.name, what, pieces
        self._files = (RUN, RESULT, pieces, *files)
        self._lock = FolderLock(path, what)
        self._start, self._resumed = 0.0, False

    def __enter__(self) -> StageFolder:
        """Locks the folder, removes what a kill has left half-written and checks what was asked for before.

        The stage counts as unfinished from now on, until `finish`.
        """
        self._lock.acquire()
        try:
            remove_leftovers(self.path, self._files)
            self._claim()
            try:
                (self.path / RESULT).unlink(missing_ok=True)
            except OSError as error:
                raise FileError(f"{self.path / RESULT} cannot be replaced ({error.strerror}): move it away") from error
        except BaseException:
            self._lock.release()
            raise
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Frees the folder."""
        self._lock.release()

    def journal(self, fields: Sequence[str] = ()) -> Journal:
        """Returns the finished pieces of the stage; see `Journal`."""
        return Journal(self.path / self._pieces, fields)

    def finish(self, value: Any = None) -> Any:
        """Stores the stage's value, and with it that the stage is finished; gives the value as it will be read again.

        The seconds are those of this session. Where an earlier one has done a part, they say nothing of the whole stage.
        """
        saved = save(value, self.path)
        seconds = round(time.perf_counter() - self._start, 3)
        found = {"name": self._name, "seconds": seconds, "resumed": self._resumed, "value": saved}
        write_json(self.path / RESULT, found)
        return load(saved, self.path)

    def _claim(self) -> None:
        asked = {"name": self._name, "what": self._what, "pieces": self._pieces, "settings": self.settings}
        path = self.path / RUN
        self._resumed = path.exists()
        if self._resumed:
            try:
                before = read_json(path)
                what, settings = before["what"], dict(before["settings"])
            except (FileError, KeyError, TypeError, ValueError) as error:
                reason = error if isinstance(error, FileError) else f"{path} is damaged: no entry 'what' or 'settings'"
                raise FileError(
                    f"{reason}. It says what is in {self.path}: choose another folder with --out, or restore it"
                ) from error
            if what != self._what:
                raise UserError(f"{self.path} holds a {what}, not a {self._what}: choose another folder with --out")
            if changed := differences(settings, self.settings):
                raise UserError(f"{self.path} holds another {self._what} ({changed}): choose another folder with --out")
        elif others := sorted(each.name for each in self.path.iterdir() if each.name != LOCK):
            raise UserError(
                f"{self.path} is not empty ({others[0]}) and holds no {self._what}: choose another folder with --out"
            )
        else:
            write_json(path, asked)


class Stages:
    """Runs stages in folders under `out`.

    Args:
      out: folder of the job.
      writes: False on processes that compute along but leave the files to another one.
    """

    def __init__(self, out: Path, *, writes: bool = True):
        self.out, self._writes = Path(out), writes
        self._made: dict[Stage, Work] = {}
        self._expected: dict[Stage, dict[str, Any]] = {}
        self._results: dict[Stage, Result] = {}

    # What there is to do

    def make(self, name: str, function: Callable[..., Any], *inputs: Any) -> Stage:
        """Names a stage whose value is `function(*inputs)`.

        Args:
          name: of the stage.
          function: its name tells it from others. Its value is kept, see `smallr.core.stage_values`.
          inputs: anything of `identity_of`. Stages, also in lists and mappings, are given as their values.
        """
        return self._name(name, function, inputs, lambda folder, values: function(*values))

    def do(self, name: str, function: Callable[..., Any], *inputs: Any) -> Stage:
        """Names a stage that works in its folder: `function(folder, *inputs)`, with inputs as in `make`.

        The function is called again with the same folder after an interruption.
        """
        return self._name(name, function, inputs, lambda folder, values: function(folder, *values))

    def _name(self, name: str, function: Callable[..., Any], inputs: tuple[Any, ...], call: Callable) -> Stage:
        settings = {"function": identity_of(function), "inputs": [identity_of(each) for each in inputs]}
        stage = Stage(name, settings, tuple(find(inputs, Stage)))
        if stage not in self._made and any(other.name == name for other in self._made):
            raise ValueError(f"two stages are called {name!r}")
        self._made[stage] = lambda _, folder, __: call(folder, replace(inputs, Stage, self.value))
        return stage

    def expect(self, stage: Stage, kind: str, amount: float, seconds: float | None = None) -> None:
        """Says how much work of a kind a stage is, and how long it will take if that is known, for the table of stages.

        Args:
          stage: any.
          kind: of work; finished stages of a kind tell how long the others take.
          amount: of work, in any unit that its kind shares.
          seconds: estimated, until a stage of the kind is finished.
        """
        self._expected[stage] = {"kind": kind, "amount": max(float(amount), 1.0), "expected": seconds}

    @property
    def named(self) -> list[Stage]:
        """Returns the stages that `make` and `do` have named, in their order."""
        return list(self._made)

    # What is done

    def folder(self, stage: Stage) -> Path:
        """Returns where a stage's files are."""
        return self.out / f"{stage.name}-{stage.digest}"

    def result(self, stage: Stage) -> Result | None:
        """Returns what a stage has left; None if it is not finished.

        Raises:
          FileError: what it has left is damaged.
        """
        if stage not in self._results:
            folder = self.folder(stage)
            path = folder / RESULT
            if not path.exists():
                return None
            try:
                found = read_json(path)
                self._results[stage] = Result(load(found["value"], folder), float(found["seconds"]))
            except (FileError, KeyError, TypeError, ValueError) as error:
                raise FileError(
                    f"{path} cannot be read ({error}): delete it, and the stage goes on from its folder"
                ) from error
        return self._results[stage]

    def is_done(self, stage: Stage) -> bool:
        """Returns whether a stage is finished; what it has left is read only when its value is asked for."""
        return stage in self._results or (self.folder(stage) / RESULT).exists()

    def value(self, stage: Stage) -> Any:
        """Returns the value of a finished stage.

        Raises:
          UserError: it is not finished.
        """
        result = self.result(stage)
        if result is None:
            raise UserError(f"stage {stage.name} is not finished: {self.folder(stage)}")
        return result.value

    def rows(self, stages: Sequence[Stage]) -> list[dict[str, Any]]:
        """Returns name, settings and metrics of each finished stage whose value is a mapping, with dotted names."""
        found = [(stage, self.result(stage)) for stage in stages]
        return [
            {"run": stage.name, **flat(stage.settings), **result.value, "seconds": result.seconds}
            for stage, result in found
            if result is not None
        ]

    # Doing it

    def run(
        self, stages: Sequence[Stage] | None = None, work: Work | None = None, share: tuple[int, int] = (0, 1)
    ) -> list[dict[str, Any]]:
        """Does what is missing, in order.

        Args:
          stages: by default all that `make` and `do` have named so far. A stage comes behind those that it needs.
          work: does a stage in its folder and gives its value; by default the stage's own function. It is called again with
            the same folder after an interruption.
          share: (i, n) takes the i-th of n parts, so that n machines with a common disk share the stages out.

        Returns:
          `rows` of the stages that are finished by then, where they are given.

        Raises:
          UserError: a needed stage is missing or comes later, two are one, or another process works on one.
          Stopped: as raised by `work`.
        """
        plan = list(self._made) if stages is None else list(stages)
        check(plan)
        mine = part(plan, *share)
        if self._writes:
            self._show(plan)
        for number, stage in enumerate(mine, 1):
            if not self.is_done(stage):
                print(f"[{number}/{len(mine)}] {stage.name}", flush=True)
                self._do(stage, work or self._made[stage])
        return [] if stages is None else self.rows(plan)

    def _show(self, plan: Sequence[Stage]) -> None:
        from smallr.core.stage_table import show, states  # which reads what is written here

        listed = [
            {"name": stage.name, "folder": self.folder(stage).name, **self._expected.get(stage, {})} for stage in plan
        ]
        path = self.out / PLAN
        if not path.exists() or read_json(path, list) != listed:
            write_json(path, listed)
        if len(plan) > 1 and not all(map(self.is_done, plan)):
            print(show(states(self.out)), flush=True)

    def _do(self, stage: Stage, work: Work) -> None:
        folder, needs = self.folder(stage), [self.folder(need) for need in stage.needs]
        if not self._writes:
            start = time.perf_counter()
            value = work(stage, folder, needs)
            self._results[stage] = Result(value, time.perf_counter() - start)
            return
        identity = {"settings": dict(stage.settings), "needs": {need.name: need.digest for need in stage.needs}}
        with StageFolder(folder, identity, name=stage.name) as opened:
            value = opened.finish(work(stage, folder, needs))
        if isinstance(value, Mapping) and value and all(isinstance(each, int | float) for each in value.values()):
            print("  " + ", ".join(f"{name} {each:.4g}" for name, each in value.items()), flush=True)


def check(stages: Sequence[Stage]) -> None:
    """Checks whether stages can be done in their order.

    Raises:
      UserError: they cannot.
    """
    seen: set[str] = set()
    for stage in stages:
        missing = [need.name for need in stage.needs if need.digest not in seen]
        if missing:
            raise UserError(f"stage {stage.name} needs {', '.join(missing)}, which must stand before it")
        if stage.digest in seen:
            raise UserError(f"stage {stage.name}: another one has the same settings")
        seen.add(stage.digest)


def part(stages: Sequence[Stage], index: int, count: int) -> list[Stage]:
    """Returns the stages of one of `count` machines. Stages that are tied by their needs stay together.

    Raises:
      UserError: no such part.
    """
    if not 0 <= index < count:
        raise UserError(f"share {index}/{count}: parts are counted from 0 to {count - 1}")
    group: dict[str, int] = {}  # of each stage, by digest
    for stage in stages:
        tied = {group[need.digest] for need in stage.needs}
        group[stage.digest] = min(tied, default=len(group))
        for digest, other in group.items():
            if other in tied:
                group[digest] = group[stage.digest]
    numbers = {old: new for new, old in enumerate(dict.fromkeys(group.values()))}
    return [stage for stage in stages if numbers[group[stage.digest]] % count == index]
