"""Runs a benchmark of planning, on one page: questions in; candidates, outcomes, judgements, picks and a report out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from smallr.core.journal import Journal
from smallr.core.stage_values import identity_of
from smallr.core.stages import Stages
from smallr.methods.planner import config as fields
from smallr.methods.planner.data import load_problems
from smallr.methods.planner.discriminators.base import MODES, Case, Judgement
from smallr.methods.planner.instances import execute_on_instances
from smallr.methods.planner.opening import (
    Judging,
    Tools,
    judge_prompt,
    model_identity,
    open_tools,
    open_writer,
    reward_prompt,
)
from smallr.methods.planner.report import write_report
from smallr.methods.planner.rows import as_rows, execute_all, of_rows
from smallr.methods.planner.searching import planned_searches, search
from smallr.methods.planner.sql.components import compare_rows
from smallr.methods.planner.sql.gold import suspicious_joins
from smallr.methods.planner.task import Candidate, Problem
from smallr.methods.planner.training_rows import reward_rows, training_rows, write_training_rows

Rows = list[dict[str, Any]]
_NOT_SENT = Judgement(error="it does not execute, so it is not sent")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """The problems of a run, as an input of its stages.

    Attributes:
      given: candidates of each problem; None where the generator proposes them.
    """

    tools: Tools
    problems: Sequence[Problem]
    given: Sequence[Sequence[Candidate]] | None

    @property
    def digest(self) -> str:
        """A digest of the questions, what is executed on, and how."""
        databases = {problem.source for problem in self.problems if problem.source}
        config = self.tools.config
        content = [
            [[problem.id, problem.question, problem.context, problem.gold] for problem in self.problems],
            [[dataclasses.astuple(each) for each in candidates] for candidates in self.given or ()],
            sorted(json.dumps(identity_of(Path(each))) for each in databases),
            [config.task, config.data.keep_distinct, config.limits.seconds, config.limits.rows, config.seed],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def run_planner(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """Runs a benchmark, or goes on with the one in `folder`.

    Args:
      config: of `smallr.methods.planner.config.base`.
      folder: gets a folder for each stage, report.json, report.md and plots.

    Returns:
      The report, as it stands in report.json.

    Raises:
      Stopped: it was interrupted, or requests got no reply; the same command goes on.
      UserError: anything else that the user must change.
    """
    fields.check(config)
    with open_tools(config) as tools:
        problems, given = load_problems(config, tools.task)
        benchmark, stages = Benchmark(tools, problems, given), Stages(folder)

        candidates = stages.do("candidates", propose, benchmark, generator_identity(tools))
        executed = stages.do("executed", execute, benchmark, candidates)
        judgements = {
            judging.name: stages.do(f"judgements_{judging.name}", judge, benchmark, judging, executed)
            for judging in judgings(tools)
        }
        searches = {
            each.name: stages.do(f"search_{each.name}", search, benchmark, each, candidates)
            for each in planned_searches(tools, generator_identity(tools))
        }
        count = config.data.instances
        instances = [stages.do("instances", vary, benchmark, candidates, count)] if count else []
        is_sql = config.task == "sql"
        exact = [stages.make("exact_match", compare_rows, executed)] if is_sql else []
        gold = [stages.do("gold_joins", check_joins, benchmark)] if is_sql else []
        if config.training.holdout:
            holdout = tuple(config.training.holdout)
            stages.do("training_rows", label, benchmark, executed, holdout, _labels_identity(tools))
        stages.run()
        return write_report(
            folder,
            config,
            stages.value(executed),
            stages.value(instances[0])["rows"] if instances else [],
            stages.value(exact[0]) if exact else {},
            stages.value(gold[0]) if gold else [],
            {name: stages.value(stage) for name, stage in judgements.items()},
            {name: stages.value(stage) for name, stage in searches.items()},
            {
                stage.name: stages.result(stage).seconds
                for stage in (candidates, executed, *instances, *judgements.values())
            },
        )


# Stages


def propose(folder: Path, benchmark: Benchmark, _: Mapping[str, Any]) -> Rows:
    """Gives the candidates of each problem: those of the rows, or what the generator proposes."""
    tools, config = benchmark.tools, benchmark.tools.config
    if benchmark.given is not None:
        return [
            _candidate_row(problem, each) for problem, each in zip(benchmark.problems, benchmark.given, strict=True)
        ]
    journal = Journal(folder / "journal.jsonl", ("candidates",))
    todo = [problem for problem in benchmark.problems if problem.id not in journal]
    if todo:
        with open_writer(config) as writer:
            size = 4 * config.compute.decode_slots
            for start in tqdm(range(0, len(todo), size), desc="candidates", disable=None):
                _propose_some(tools, writer, todo[start : start + size], journal)
    return [{"id": problem.id, **journal[problem.id]} for problem in benchmark.problems]


def _propose_some(tools: Tools, writer: Any, problems: Sequence[Problem], journal: Journal) -> None:
    """Has the generator write for several problems at once."""
    drafts = []
    for problem in problems:  # the task writes the prompt; nothing is generated yet
        tools.task.propose(problem, lambda _, draft: drafts.append(draft) or [], tools.config.budget.candidates)
    for problem, texts in zip(problems, writer.write_all(drafts), strict=True):
        candidates = tools.task.propose(problem, lambda *_, texts=texts: texts, tools.config.budget.candidates)
        row = _candidate_row(problem, candidates)
        journal.add(row.pop("id"), {**row, "replies": texts})


def execute(folder: Path, benchmark: Benchmark, candidates: Rows) -> Rows:
    """Executes all candidates."""
    found = [[Candidate(**each) for each in row["candidates"]] for row in candidates]
    task = benchmark.tools.task
    return as_rows(task, benchmark.problems, execute_all(task, benchmark.problems, found))


def check_joins(folder: Path, benchmark: Benchmark) -> Rows:
    """Finds the joins of gold queries that are suspicious."""
    return suspicious_joins(benchmark.tools.task, benchmark.problems)


def vary(folder: Path, benchmark: Benchmark, candidates: Rows, count: int) -> dict[str, list[Rows]]:
    """Executes all candidates on further instances of the databases."""
    found = [[Candidate(**each) for each in row["candidates"]] for row in candidates]
    task, seed = benchmark.tools.task, benchmark.tools.config.seed
    return {"rows": execute_on_instances(folder, task, benchmark.problems, found, count, seed)}


def label(
    folder: Path, benchmark: Benchmark, executed: Rows, holdout: Sequence[str], identity: Mapping[str, Any]
) -> Path:
    """Writes rows to train a discriminator on."""
    tools = benchmark.tools
    rows = training_rows(benchmark.problems, executed, judge_prompt(tools, "yes_no", shows_results=False))
    rewards = reward_rows(benchmark.problems, executed, reward_prompt(tools))
    return write_training_rows(folder, rows, rewards, holdout)


def judge(folder: Path, benchmark: Benchmark, judging: Judging, executed: Rows) -> Rows:
    """Has a discriminator judge the candidates that are sent to it; problems that are finished are kept over a kill."""
    journal = Journal(folder / "journal.jsonl", ("judgements",))
    every = of_rows(executed)
    sent = [[place for place, each in enumerate(found) if not (judging.checks and each.error)] for found in every]
    cases = [
        Case(problem, tuple(found[place].plan for place in places), tuple(found[place].outcome for place in places))
        for problem, found, places in zip(benchmark.problems, every, sent, strict=True)
    ]
    todo = [case for case in cases if case.problem.id not in journal]
    if todo:
        with judging.open() as discriminator:
            for index, judgements in discriminator.judge(todo):
                entry = {"judgements": [dataclasses.asdict(each) for each in judgements]}
                journal.add(todo[index].problem.id, entry)
    rows = []
    for case, found, places in zip(cases, every, sent, strict=True):
        said: Rows = [dataclasses.asdict(_NOT_SENT) for _ in found]
        for place, judgement in zip(places, journal[case.problem.id]["judgements"], strict=True):
            said[place] = judgement
        rows.append({"id": case.problem.id, "judgements": said})
    return rows


def _candidate_row(problem: Problem, candidates: Sequence[Candidate]) -> dict[str, Any]:
    return {"id": problem.id, "candidates": [dataclasses.asdict(each) for each in candidates]}


def judgings(tools: Tools) -> list[Judging]:
    """Returns the discriminators that a run needs: one for all modes that show the same prompt."""
    discriminator = tools.config.discriminator
    checks: dict[bool, bool] = {}  # by whether results are shown: whether all modes that do so check
    for check, shows in (MODES[mode] for mode in discriminator.modes):
        checks[shows] = checks.get(shows, True) and check
    kinds = discriminator.kinds if discriminator.model else ()
    return [Judging(tools, kind, shows, checks[shows]) for kind in kinds for shows in sorted(checks)]


def _labels_identity(tools: Tools) -> dict[str, Any]:
    """Returns what the texts of training rows depend on, besides the questions."""
    fields = tools.config.discriminator
    return {"context": fields.context, "few_shot": fields.few_shot, "prompts": tools.prompts.digest}


def generator_identity(tools: Tools) -> dict[str, Any]:
    """Returns what generated candidates depend on, besides the questions."""
    config = tools.config
    if not config.generator.model:
        return {}
    settings = {name: config.generator[name] for name in ("temperature", "top_p", "max_tokens")}
    compute = {"dtype": config.compute.dtype, "max_length": config.compute.max_length}
    model = model_identity(config.generator.model)
    return {
        "model": model,
        **settings,
        **compute,
        "candidates": config.budget.candidates,
        "seed": config.seed,
        "prompts": tools.prompts.digest,
    }
