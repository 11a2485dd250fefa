"""Generates decompositions, on one page: problems in, a teacher at work on many, data sets and a report out."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from smallr.agents.agent import Agent
from smallr.agents.annotation import annotate
from smallr.agents.workers import FIELDS
from smallr.core.journal import Journal
from smallr.core.stages import StageFolder
from smallr.methods.decomposition import config as fields
from smallr.methods.decomposition.agents import open_agents
from smallr.methods.decomposition.answers import AnswerCheck
from smallr.methods.decomposition.names import TEACHERS
from smallr.methods.decomposition.output import FILES, write_data_sets
from smallr.methods.decomposition.problems import Problems, load_problems
from smallr.methods.decomposition.prompts import load_prompts
from smallr.methods.decomposition.raw import RawRow, decompositions
from smallr.methods.decomposition.report import REPORTS, write_report
from smallr.methods.decomposition.row_worker import Method, decompose


def default_folder(config: ConfigDict) -> Path:
    """Returns where results go if no folder is named: the same for the same run, so that a second start goes on."""
    run = {**fields.identity(config, TEACHERS, load_prompts(config.prompts).digest), "data": config.data.to_dict()}
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:8]
    source = config.data.source.rpartition("/")[2]
    readable = "".join(c if c.isalnum() or c in "-._" else "-" for c in source).strip("-.")
    return Path("runs") / "decompose" / f"{readable}-{digest}"


def run_generation(config: ConfigDict, folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Generates decompositions, or goes on with the run in `folder`.

    Args:
      config: of `config.generation`.
      folder: gets run.json, journal.jsonl, the data sets of `output.FILES`, report.md and report.json.
      console: where the counts are shown.

    Returns:
      The report, as it stands in report.json; `open` counts problems that got no reply.

    Raises:
      Stopped: it was interrupted, or too many requests in a row got no reply.
      UserError: anything else that the user must change; as much of it as possible before the first request.
    """
    fields.check(config)
    prompts, markers = load_prompts(config.prompts), fields.markers_of(config)
    problems = load_problems(config, markers)
    identity = fields.identity(config, TEACHERS, prompts.digest)
    with (
        StageFolder(folder, identity, what="generation of decompositions", files=(*FILES, *REPORTS)) as stage,
        open_agents(config, TEACHERS) as agents,
        contextlib.closing(AnswerCheck(config.parser)) as check,
    ):
        journal = stage.journal(FIELDS)
        method = Method(prompts, markers, config.sets, config.verdicts)
        unanswered = _generate(config, problems, method, agents, journal, console)
        entries = {row.id: journal[row.id] for row in problems.rows if row.id in journal}
        raw = _raw_rows(problems, entries)
        made = {
            split: decompositions(rows, check, markers, published=config.parser == "published")[0]
            for split, rows in raw.items()
        }
        counts = write_data_sets(folder, raw, made, markers, tuple(config.gaps))
        report = write_report(folder, config, problems, entries, made, counts, agents, unanswered)
        if not unanswered:
            stage.finish(report["problems"])
    return report


def _generate(
    config: ConfigDict,
    problems: Problems,
    method: Method,
    agents: Mapping[str, Agent],
    journal: Journal,
    console: Console | None,
) -> list[str]:
    """Has every problem decomposed; gives the errors of those that got no reply."""
    counts: Counter[str] = Counter()

    def count(row: Mapping[str, Any]) -> None:
        counts["sets"] += len(row["sets"])
        counts.update(drop["reason"] for drop in row["drops"])

    def lines() -> list[tuple[str, str]]:
        dropped = [(reason, f"{n} dropped") for reason, n in counts.items() if reason != "sets"]
        return [("sets", f"{counts['sets']}"), *dropped]

    return annotate(
        problems.rows,
        lambda row, client, _: decompose(row, method, client),
        config,
        agents,
        journal,
        title="decompositions",
        count=count,
        lines=lines,
        console=console,
    )


def _raw_rows(problems: Problems, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, list[RawRow]]:
    """Returns the raw rows of each split; a problem without a set has none."""
    raw: dict[str, list[RawRow]] = {split: [] for split in problems.splits}
    for row in problems.rows:
        sets = entries[row.id]["row"]["sets"] if row.id in entries else []
        if sets:
            texts = [tuple(each[name] for each in sets) for name in ("questions", "answers")]
            feedback = tuple(tuple(each["feedback"]) for each in sets)
            raw[row.split].append(RawRow(row.question, f"#### {row.answer}", *texts, feedback if all(feedback) else ()))
    return raw
