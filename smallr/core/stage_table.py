"""Shows where a job stands: the states of its stages, as a table. It reads folders and changes nothing."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError
from smallr.core.files import FileError, read_json
from smallr.core.locks import living_holder
from smallr.core.stages import PLAN, RESULT, RUN

CHECKPOINTS, REPORT = "checkpoints", "report.json"  # of a training run, which is a stage too
_DEPTH = 3  # folders below the one that is asked about in which stages are looked for
_MOST = 40  # stages that are listed one by one


class State(enum.StrEnum):
    """Names the states of a stage."""

    DONE = "done"
    ACTIVE = "going on"  # a process works on it
    BEGUN = "begun"  # no process works on it; it goes on where it was
    WAITING = "waiting"  # nothing was done yet
    STALE = "stale"  # of an earlier plan: other settings or inputs
    DAMAGED = "damaged"


_LEFT = (State.WAITING, State.BEGUN, State.ACTIVE)


@dataclasses.dataclass(frozen=True)
class Line:
    """Describes a stage in the table.

    Attributes:
      name: of the stage, with the folders that lead to it.
      state: of the stage.
      seconds: that it took or is estimated to take; None where that is not known.
      note: finished pieces, who works on it, what is damaged.
      kind, amount: of its work, where the plan says them; see `Stages.expect`.
      resumed: it went on after an interruption, so `seconds` are those of its last part.
    """

    name: str
    state: State
    seconds: float | None = None
    note: str = ""
    kind: str = ""
    amount: float = 0.0
    resumed: bool = False


def states(folder: Path) -> list[Line]:
    """Returns the stages of a job, in their order.

    Args:
      folder: of a job with several stages, of one stage (a CRV run, an evaluation, a training run), or one that holds such folders.

    Raises:
      UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    lines = _with_estimates(_lines(folder, "", _DEPTH))
    if not lines:
        raise UserError(f"{folder}: no stages there ({RUN} or {PLAN} marks them)")
    return lines


def show(lines: Sequence[Line]) -> str:
    """Returns the table as text, with a line that sums it up; only that line where there are many stages."""
    cells = [(line.name, line.state.value, _time(line), line.note) for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([*(table if len(lines) <= _MOST else []), _summary(lines)])


def _lines(folder: Path, prefix: str, depth: int) -> list[Line]:
    if (folder / PLAN).is_file():
        return _planned(folder, prefix)
    if _is_stage(folder):
        return [_line(folder, prefix + folder.name)]
    if depth == 0:
        return []
    parts = sorted(part for part in folder.iterdir() if part.is_dir() and not part.name.startswith("."))
    return [
        line
        for part in parts
        for line in _lines(part, prefix if _is_stage(part) else f"{prefix}{part.name}/", depth - 1)
    ]


def _is_stage(folder: Path) -> bool:
    return (folder / RUN).exists() or (folder / CHECKPOINTS).is_dir()


def _planned(folder: Path, prefix: str) -> list[Line]:
    """Returns the stages of the plan, then folders of an earlier one."""
    try:
        plan = [(prefix + str(each["name"]), str(each["folder"]), each) for each in read_json(folder / PLAN, list)]
    except (FileError, KeyError, TypeError) as error:
        return [Line(prefix + PLAN, State.DAMAGED, note=str(error))]
    known = {name for _, name, _ in plan}
    stale = sorted(part for part in folder.iterdir() if part.name not in known and (part / RUN).exists())
    return [
        *(_expected(_line(folder / place, name), entry) for name, place, entry in plan),
        *(dataclasses.replace(_line(part, prefix + part.name), state=State.STALE) for part in stale),
    ]


def _expected(line: Line, entry: Mapping[str, Any]) -> Line:
    """Adds what the plan expects of a stage."""
    if "kind" not in entry:
        return line
    seconds = line.seconds if line.state is State.DONE else entry["expected"]
    return dataclasses.replace(line, seconds=seconds, kind=entry["kind"], amount=entry["amount"])


def _line(folder: Path, name: str) -> Line:
    if not _is_stage(folder):
        return Line(name, State.WAITING)
    try:
        asked = read_json(folder / RUN) if (folder / RUN).exists() else {}
        done = RESULT if asked else REPORT
        note = _pieces(folder / str(asked.get("pieces", "journal.jsonl"))) or _steps(folder / CHECKPOINTS)
        holder = living_holder(folder)
        if holder is not None:
            return Line(name, State.ACTIVE, note="; ".join(filter(None, (note, str(holder)))))
        if not (folder / done).exists():
            return Line(name, State.BEGUN, note=note)
        found = read_json(folder / done)
        if found.get("finished") is False:  # a training run that a signal has ended
            return Line(name, State.BEGUN, note=note)
        seconds = found.get("seconds")
        if isinstance(seconds, dict):  # of a training run, by what they were spent on
            seconds = seconds.get("total")
        resumed = found.get("resumed") is True
        note = "; ".join(filter(None, (note, "the time is that since it last went on" if resumed else "")))
        return Line(name, State.DONE, None if seconds is None else float(seconds), note, resumed=resumed)
    except (FileError, TypeError, ValueError) as error:
        return Line(name, State.DAMAGED, note=str(error))


def _steps(checkpoints: Path) -> str:
    steps = [int(each.name) for each in checkpoints.iterdir() if each.name.isdigit()] if checkpoints.is_dir() else []
    return f"checkpoint of step {max(steps)}" if steps else ""


def _pieces(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return f"{lines} pieces finished"


def _with_estimates(lines: Sequence[Line]) -> list[Line]:
    """Estimates stages that are not done by those of their kind that are: in proportion to the work that the plan says,
    else by the mean of stages whose names differ in numbers alone. One that went on after an interruption tells nothing.
    """
    taken: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        if line.state is State.DONE and line.seconds is not None and not line.resumed:
            taken.setdefault(_kind(line), []).append((line.seconds, _amount(line)))
    return [
        dataclasses.replace(line, seconds=_amount(line) * sum(s for s, _ in times) / sum(a for _, a in times))
        if line.state in _LEFT and (times := taken.get(_kind(line)))
        else line
        for line in lines
    ]


def _kind(line: Line) -> str:
    return line.kind or re.sub(r"\d+", "#", line.name)


def _amount(line: Line) -> float:
    return line.amount if line.kind else 1.0


def _time(line: Line) -> str:
    if line.seconds is None:
        return "unknown" if line.state in _LEFT else ""
    text = str(datetime.timedelta(seconds=round(line.seconds)))
    return text if line.state is State.DONE else f"about {text}"


def _summary(lines: Sequence[Line]) -> str:
    counts = {state: sum(line.state is state for line in lines) for state in State}
    text = f"{len(lines)} stages: " + ", ".join(f"{count} {state.value}" for state, count in counts.items() if count)
    left = [line for line in lines if line.state in _LEFT]
    known = [line.seconds for line in left if line.seconds is not None]
    if known:
        least = "about" if len(known) == len(left) else "at least"
        text += f"; {least} {datetime.timedelta(seconds=round(sum(known)))} left"
    return text
