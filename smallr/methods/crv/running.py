"""A whole run: rows in, agents at work on many at a time, two data sets and a report out."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from smallr.core.errors import UserError
from smallr.core.journal import Journal
from smallr.methods.crv import config as fields
from smallr.methods.crv.agents import Agent, Asking, Line, OutOfService, Tally, Unanswered, open_agents
from smallr.methods.crv.board import Board
from smallr.methods.crv.checking import RuleCheck
from smallr.methods.crv.output import write_data_sets
from smallr.methods.crv.prompts import Prompts
from smallr.methods.crv.report import write_report
from smallr.methods.crv.rows import ROLES, TeacherRow
from smallr.methods.crv.teacher_rows import load_teacher
from smallr.methods.crv.work import Course, Method


class Stopped(UserError):
    """The run ended before its rows did; what was finished is kept."""


def default_folder(config: ConfigDict) -> Path:
    """Where results go if no folder is named: the same for the same run, so that a second start goes on."""
    source = config.data.source
    readable = "".join(c if c.isalnum() or c in "-._" else "-" for c in source.rpartition("/")[2]).strip("-.")
    run = {**fields.identity(config, Prompts(config.prompts).digest), "data": config.data.to_dict()}
    return (
        Path("runs") / "crv" / f"{readable}-{hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:8]}"
    )


def run_crv(config: ConfigDict, folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Runs CRV, or goes on with the run in `folder`.

    Args:
      config: of `smallr.methods.crv.config.base`.
      folder: gets run.json, journal.jsonl, the data sets `verified` and `failed`, report.md, report.json and, where
        matplotlib is installed, lengths.png.
      console: where the counts are shown.

    Returns:
      The report, as it stands in report.json; `open` counts rows that got no reply.

    Raises:
      Stopped: it was interrupted, or too many requests in a row got no reply.
      UserError: anything else that the user must change; as much of it as possible before the first request.
    """
    fields.check(config)
    prompts = Prompts(config.prompts)
    teacher = load_teacher(config)
    journal = Journal(folder, fields.identity(config, prompts.digest), what="CRV run")
    console = console or Console(stderr=True)
    with open_agents(config) as agents, contextlib.closing(RuleCheck(config.check)) as rules:
        method = _method(config, prompts, rules, agents)
        board, tally = _board(teacher.rows, agents, journal, console)
        todo = [row for row in teacher.rows if row.id not in journal.entries()]
        with board:
            unanswered = asyncio.run(_work(todo, config, method, agents, journal, board, tally))
        finished = _finished(teacher.rows, journal)
        write_data_sets(folder, teacher.splits, [(row.split, entry["row"]) for row, entry in finished])
        return write_report(folder, config, teacher, [entry for _, entry in finished], agents, unanswered)


def _method(config: ConfigDict, prompts: Prompts, rules: RuleCheck, agents: Mapping[str, Agent]) -> Method:
    return Method(
        prompts=prompts,
        rules=rules,
        student=config.student,
        models={role: agents[role].model.name if role in agents else "" for role in ROLES},
        max_retries=config.max_retries,
        form=config.format,
        box=config.box,
        recheck=config.recheck,
        verify_original=config.verify_original,
        count=config.incorrect.count,
        sources=tuple(fields.sources(config)),
        samples=config.incorrect.samples,
    )


def _board(
    rows: Sequence[TeacherRow], agents: Mapping[str, Agent], journal: Journal, console: Console
) -> tuple[Board, Tally]:
    tally, prior = Tally(), Tally()
    board = Board(len(rows), agents, tally, prior, console)
    for _, entry in _finished(rows, journal):
        add_usage(prior, entry["usage"])
        board.count(entry["row"], resumed=True)
    return board, tally


def _finished(rows: Sequence[TeacherRow], journal: Journal) -> list[tuple[TeacherRow, dict[str, Any]]]:
    entries = journal.entries()
    return [(row, entries[row.id]) for row in rows if row.id in entries]


def add_usage(tally: Tally, usage: Mapping[str, Mapping[str, int]]) -> None:
    """Adds what a row's journal entry says that it used."""
    for role, counts in usage.items():
        for what, count in counts.items():
            tally.counts[role, what] += count


async def _work(
    rows: Sequence[TeacherRow],
    config: ConfigDict,
    method: Method,
    agents: Mapping[str, Agent],
    journal: Journal,
    board: Board,
    tally: Tally,
) -> list[str]:
    """Works on all rows, `config.concurrency` at a time; gives the errors of those that got no reply."""
    line, queue, unanswered = Line(config.max_errors), iter(rows), []

    async def worker() -> None:
        for row in queue:
            own = Tally()
            asking = Asking(
                agents,
                seed=config.seed,
                reasks=config.reasks,
                reask_temperature=config.reask_temperature,
                line=line,
                tallies=(tally, own),
            )
            try:
                out = await Course(row, method, asking, own).run()
            except Unanswered as error:
                unanswered.append(str(error))
                continue
            usage = {role: {what: own.counts[role, what] for r, what in own.counts if r == role} for role in agents}
            journal.add(row.id, {"row": out, "usage": usage})
            board.count(out)

    tasks = [asyncio.ensure_future(worker()) for _ in range(min(config.concurrency, len(rows)))]
    stopped = ""
    with _interrupts(tasks) as signals:
        try:
            await asyncio.gather(*tasks)
        except OutOfService as error:
            stopped = str(error)
            # Requests under way may still be answered, and are paid for if they are; nobody starts another one.
            await asyncio.gather(*tasks, return_exceptions=True)
        except UserError as error:  # of a model: nothing can be answered as things stand
            stopped = str(error)
        except asyncio.CancelledError:
            stopped = f"interrupted by {signals[0]}" if signals else "interrupted"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    if stopped:
        raise Stopped(
            f"stopped: {stopped}\n{len(journal.entries())} rows are finished and kept in {journal.folder}; replies that were "
            "paid for are in the cache. The same command goes on from there."
        )
    return unanswered


@contextlib.contextmanager
def _interrupts(tasks: Sequence[asyncio.Task]) -> Iterator[list[str]]:
    """SIGINT and SIGTERM cancel the tasks; gives the names of signals that came."""
    loop, came = asyncio.get_running_loop(), []

    def stop(number: signal.Signals) -> None:
        came.append(number.name)
        for task in tasks:
            task.cancel()

    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread
            loop.add_signal_handler(number, stop, number)
            handled.append(number)
    try:
        yield came
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
