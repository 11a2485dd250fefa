"""Plans for one question on a user's own database, and keeps a trace of how the pick came about."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.methods.planner import baselines
from smallr.methods.planner import config as fields
from smallr.methods.planner.discriminators.base import MODES
from smallr.methods.planner.opening import Judging, Tools, open_tools, open_writer
from smallr.methods.planner.planners import PLANNERS, Judge, Search
from smallr.methods.planner.rows import Executed, execute_all
from smallr.methods.planner.searching import PlannedSearch
from smallr.methods.planner.task import Candidate, Draft, Problem, Write

_SHOWN = 3  # replies of a generator that proposed nothing
VOTE = "majority"


def plan_for_question(
    config: ConfigDict, database: Path, question: str, candidates: Sequence[str] = (), planner: str = "rerank"
) -> dict[str, Any]:
    """Returns the trace of one question, in JSON's types.

    Args:
      config: of `smallr.methods.planner.config.base`; its first kind, mode and rule count.
      database: a SQLite file, which is only read.
      question: in words.
      candidates: queries in place of a generator.
      planner: one of `PLANNERS`, but for the oracle.

    Raises:
      UserError: a database or model that cannot be used, or no candidate.
    """
    _check(config, question, candidates, planner)
    with open_tools(config) as tools:
        problem = tools.task.problem("question", question, database)
        planned = _planned(tools, planner)
        with _writer(tools, candidates) as (write, replies), _opened(planned) as judge:
            found = Search(tools.task, write, judge, problem, fields.budget(config))
            plan = PLANNERS[planner](found)
        if not found.scored and plan is None:
            raise UserError(_nothing(config, replies))
        found.score([plan] if plan else [])
        executed = _executed(tools, problem, found)
        by = planner if planned else VOTE if planner == "rerank" else planner
        if by == VOTE:
            plan = executed[baselines.majority(executed)].plan
        return _trace(tools, problem, found, executed, plan, by, planned)


def _check(config: ConfigDict, question: str, candidates: Sequence[str], planner: str) -> None:
    if not question.strip():
        raise UserError("the question is empty: --question='How many …?'")
    if planner == "oracle":
        raise UserError("planner 'oracle' needs gold plans, which a question of yours does not have")
    if not candidates and not config.generator.model:
        raise UserError(
            "nobody proposes queries: name a model with --generator=MODEL, or give some with --candidate=SQL"
        )
    if planner in fields.SEARCHES and not config.discriminator.model:
        raise UserError(f"planner {planner!r} needs a discriminator: --discriminator=MODEL")
    fields.check_choices(config)


def _planned(tools: Tools, planner: str) -> PlannedSearch | None:
    fields_of = tools.config.discriminator
    if not fields_of.model or planner == "greedy":
        return None
    kind, mode, rule = fields_of.kinds[0], fields_of.modes[0], fields_of.rules[0]
    rule = rule if kind == "reasoning" else "soft"
    return PlannedSearch(tools, planner, Judging(tools, kind, MODES[mode][1]), mode, rule, 1.0, {})


@contextlib.contextmanager
def _opened(planned: PlannedSearch | None) -> Iterator[Judge]:
    if planned is None:
        yield lambda _, plans, __: [0.0] * len(plans)
    else:
        with planned.open() as judge:
            yield judge


@contextlib.contextmanager
def _writer(tools: Tools, candidates: Sequence[str]) -> Iterator[tuple[Write, list[str]]]:
    """Gives the generator, and the list that its replies are kept in."""
    replies: list[str] = []

    def given(problem: Problem, draft: Draft) -> list[str]:
        begun = [text for text in candidates if text.startswith(draft.prefix) or not draft.prefix]
        return begun[:1] if draft.count == 1 else begun

    if candidates:
        yield given, replies
        return
    with open_writer(tools.config) as writer:

        def write(problem: Problem, draft: Draft) -> list[str]:
            replies.extend(texts := writer(problem, draft))
            return texts

        yield write, replies


def _nothing(config: ConfigDict, replies: Sequence[str]) -> str:
    shown = "; ".join(repr(text[:80]) for text in replies[:_SHOWN]) or "nothing"
    return (
        f"no candidate: the generator {config.generator.model or 'of the command line'} wrote {shown}. Try another "
        "--generator, a higher --config.generator.temperature or more --config.budget.candidates"
    )


def _executed(tools: Tools, problem: Problem, found: Search) -> list[Executed]:
    votes: dict[str, int] = {}
    for event in found.trace:
        for plan, count in zip(event.get("plans", ()), event.get("votes", ()), strict=True):
            votes[plan] = votes.get(plan, 0) + count
    return execute_all(tools.task, [problem], [[Candidate(plan, votes.get(plan, 1)) for plan in found.scored]])[0]


def _trace(
    tools: Tools,
    problem: Problem,
    found: Search,
    executed: Sequence[Executed],
    plan: str | None,
    by: str,
    planned: PlannedSearch | None,
) -> dict[str, Any]:
    seen = {} if planned is None else planned.seen
    rows = []
    for each in executed:
        row = {**dataclasses.asdict(each), "score": found.scored[each.plan] if planned else None}
        row.pop("correct")
        judgement = seen.get(each.plan)
        row |= {} if judgement is None else {"verdict": judgement.correct, "rationale": judgement.text}
        rows.append({**row, "picked": each.plan == plan})
    outcome = found.outcomes.get(plan or "")
    answer = None if outcome is None else outcome.value
    return {
        "question": problem.question,
        "database": problem.source,
        "schema": problem.context,
        "planner": by,
        "discriminator": "" if planned is None else f"{planned.judging.kind} {planned.mode} {planned.rule}",
        "candidates": rows,
        "plan": plan,
        "error": "" if outcome is None else outcome.error,
        "columns": [] if answer is None else list(answer.columns),
        "rows": [] if answer is None else [list(row) for row in answer.rows],
        "events": found.trace,
        "proposals": found.proposals,
        "expansions": found.expansions,
    }
