"""Reads the questions of a benchmark, and their candidates where they are given."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.data.sources import load_rows
from smallr.methods.planner.arithmetic import ArithmeticTask, builtin_problems
from smallr.methods.planner.sql.task import SqlTask
from smallr.methods.planner.task import Candidate, Problem

_BUILTIN = "builtin:arithmetic"
_BUILTIN_QUESTIONS = 100


def load_problems(
    config: ConfigDict, task: SqlTask | ArithmeticTask
) -> tuple[list[Problem], list[list[Candidate]] | None]:
    """Reads questions and candidates; None for these where a generator shall propose them.

    Raises:
      UserError: a row that cannot be used, with its number and column, or a database that cannot.
    """
    if config.data.source == _BUILTIN:
        problems, given = builtin_problems(config.data.sample or _BUILTIN_QUESTIONS, config.seed)
        return problems, None if config.generator.model else given
    rows = [_renamed(config, row) for row in load_rows(config.data.source, config.data.split)]
    only = set(config.data.only)
    numbers = [number for number, row in enumerate(rows) if not only or row.get("database") in only]
    if not numbers:
        raise UserError(f"config.data.only: no row of {config.data.source} is of {', '.join(sorted(only))}")
    if config.data.sample:
        count = min(config.data.sample, len(numbers))
        numbers = sorted(random.Random(f"{config.seed} questions").sample(numbers, count))
    problems = [_problem(config, task, rows[number], number) for number in numbers]
    _check_ids(problems)
    if config.generator.model:
        return problems, None
    return problems, [
        _candidates(config, task, problem, rows[number], number)
        for problem, number in zip(problems, numbers, strict=True)
    ]


def find_database(folder: str, name: str) -> Path:
    """Returns the file of a database.

    Raises:
      UserError: there is none.
    """
    places = [Path(folder, f"{name}.sqlite"), Path(folder, name, f"{name}.sqlite"), Path(folder, name)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"config.data.databases = {folder!r}: no {name}.sqlite or {name}/{name}.sqlite there")
    return found


def _renamed(config: ConfigDict, row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our columns of a row, those that it has."""
    return {ours: row[theirs] for ours, theirs in config.data.columns.items() if theirs in row}


def _problem(config: ConfigDict, task: SqlTask | ArithmeticTask, row: Mapping[str, Any], number: int) -> Problem:
    identifier = str(row.get("id", number))
    question, gold = _text(config, row, number, "question"), _text(config, row, number, "gold", optional=True)
    if not isinstance(task, SqlTask):
        return Problem(identifier, question, gold=gold)
    database = find_database(config.data.databases, _text(config, row, number, "database"))
    return task.problem(identifier, question, database, gold)


def _text(config: ConfigDict, row: Mapping[str, Any], number: int, column: str, *, optional: bool = False) -> str:
    value = row.get(column)
    if optional and value is None:
        return ""
    if not isinstance(value, str) or not (value.strip() or optional):
        name = config.data.columns[column]
        raise UserError(
            f"{config.data.source}, row {number}: column {name!r} must hold a text, not {value!r} "
            f"(--config.data.columns.{column} names another one)"
        )
    return value


def _candidates(
    config: ConfigDict, task: SqlTask | ArithmeticTask, problem: Problem, row: Mapping[str, Any], number: int
) -> list[Candidate]:
    listed = row.get("candidates")
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise UserError(
            f"{config.data.source}, row {number}: column {config.data.columns.candidates!r} must hold a list of "
            "candidates; without one a generator must propose them: --config.generator.model=…"
        )
    texts = []
    for place, each in enumerate(listed):
        plan, votes = _plan(each)
        if plan is None:
            raise UserError(
                f"{config.data.source}, row {number}, candidate {place}: expected a text, or an object with 'sql' or "
                f"'plan', not {each!r}"
            )
        texts += [plan] * votes
    return task.candidates(problem, texts)


def _plan(each: Any) -> tuple[str | None, int]:
    if isinstance(each, str):
        return each, 1
    if not isinstance(each, Mapping):
        return None, 0
    plan = each.get("sql", each.get("plan"))
    votes = each.get("votes") or len(each.get("systems") or ()) or 1
    return (plan, int(votes)) if isinstance(plan, str) else (None, 0)


def _check_ids(problems: Sequence[Problem]) -> None:
    seen: dict[str, int] = {}
    for number, problem in enumerate(problems):
        if problem.id in seen:
            raise UserError(f"rows {seen[problem.id]} and {number} have the same id {problem.id!r}: ids must be unique")
        seen[problem.id] = number
