"""Runs CRV, on one page: rows in, agents at work on many at a time, two data sets and a report out."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from smallr.agents.agent import Agent
from smallr.agents.annotation import annotate
from smallr.agents.prompts import Prompts
from smallr.agents.workers import FIELDS
from smallr.core.journal import Journal
from smallr.core.stages import StageFolder
from smallr.methods.crv import config as fields
from smallr.methods.crv.agents import open_agents
from smallr.methods.crv.checking import RuleCheck
from smallr.methods.crv.counts import RowCounts
from smallr.methods.crv.grades import fit_of, selection_of
from smallr.methods.crv.names import ROLES
from smallr.methods.crv.output import write_data_sets
from smallr.methods.crv.prompts import load_prompts
from smallr.methods.crv.report import write_report
from smallr.methods.crv.row_worker import Method, RowWorker
from smallr.methods.crv.teacher_rows import Teacher, load_teacher

_FILES = ("verified", "failed", "selected", "report.md", "report.json", "lengths.png")


def default_folder(config: ConfigDict) -> Path:
    """Returns where results go if no folder is named: the same for the same run, so that a second start goes on."""
    source = config.data.source
    readable = "".join(c if c.isalnum() or c in "-._" else "-" for c in source.rpartition("/")[2]).strip("-.")
    run = {**fields.identity(config, load_prompts(config.prompts).digest), "data": config.data.to_dict()}
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / "crv" / f"{readable}-{digest}"


def run_crv(config: ConfigDict, folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Runs CRV, or goes on with the run in `folder`.

    Args:
      config: of `smallr.methods.crv.config.base`.
      folder: gets run.json, journal.jsonl, the data sets `verified` and `failed`, `selected` where config.select asks
        for it, report.md, report.json and, where matplotlib is installed, lengths.png.
      console: where the counts are shown.

    Returns:
      The report, as it stands in report.json; `open` counts rows that got no reply.

    Raises:
      Stopped: it was interrupted, or too many requests in a row got no reply.
      UserError: anything else that the user must change; as much of it as possible before the first request.
    """
    fields.check(config)
    prompts = load_prompts(config.prompts)
    teacher = load_teacher(config)
    identity = fields.identity(config, prompts.digest)
    with (
        StageFolder(folder, identity, what="CRV run", files=_FILES) as stage,
        open_agents(config) as agents,
        contextlib.closing(RuleCheck(config.check)) as rules,
    ):
        journal = stage.journal(FIELDS)
        method = _method(config, prompts, rules, agents)
        unanswered = _annotate(config, teacher, method, agents, journal, console)
        finished = [(row, journal[row.id]) for row in teacher.rows if row.id in journal]
        selected = write_data_sets(
            folder, teacher.splits, [(row.split, entry["row"]) for row, entry in finished], selection_of(config.select)
        )
        entries = [entry for _, entry in finished]
        report = write_report(folder, config, teacher, entries, agents, unanswered, selected)
        if not unanswered:
            stage.finish(report["rows"])
    return report


def _annotate(
    config: ConfigDict,
    teacher: Teacher,
    method: Method,
    agents: Mapping[str, Agent],
    journal: Journal,
    console: Console | None,
) -> list[str]:
    """Runs every row through the method; gives the errors of rows that got no reply."""
    counts = RowCounts()
    return annotate(
        teacher.rows,
        lambda row, client, usage: RowWorker(row, method, client, usage).run(),
        config,
        agents,
        journal,
        title="critique, rethink, verify",
        count=counts.count,
        lines=counts.lines,
        console=console,
    )


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
        fit=fit_of(config.grades) if config.critic == "grades" else None,
    )
