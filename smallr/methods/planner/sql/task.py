"""Answers questions about a SQLite database by queries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smallr.agents.prompts import Prompts
from smallr.evals.extraction import query
from smallr.evals.graders.sql import same_result
from smallr.evals.isolation.queries import QueryResult, QueryRunner
from smallr.methods.planner.prompts import make_draft
from smallr.methods.planner.sql import text
from smallr.methods.planner.sql.joins import Join, count_shared
from smallr.methods.planner.task import Candidate, Outcome, Problem, Write, gather

PREVIEW_ROWS, PREVIEW_CELL = 5, 128  # of a result that a model is shown
KEPT_ROWS = 1000  # results that are longer are not remembered


@dataclasses.dataclass(frozen=True)
class Answer:
    """Rows that a query returned, and whether their order counts.

    Attributes:
      columns: their names.
      rows: as they are.
      judged: as they are compared: those of the query without DISTINCT, where that is left out.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    judged: tuple[tuple[Any, ...], ...]
    ordered: bool


class SqlTask:
    """Proposes, executes and compares queries.

    Args:
      runner: executes them; the caller closes it.
      prompts: of the method.
      keep_distinct: whether DISTINCT counts; the official comparison of Spider leaves it out of both queries.
    """

    noun, context_title = "SQL query", "Database schema"

    def __init__(self, runner: QueryRunner, prompts: Prompts, *, keep_distinct: bool = True):
        self._runner, self._prompts, self._keep_distinct = runner, prompts, keep_distinct
        self._schemas: dict[str, list[dict[str, Any]]] = {}
        self._known: dict[tuple[str, str], Outcome] = {}  # of plans by their database

    def problem(self, id: str, question: str, database: Path, gold: str = "") -> Problem:
        """Makes a problem, with the schema of its database as context."""
        return Problem(id, question, schema_text(self.tables(str(database))), str(database), gold)

    def propose(
        self, problem: Problem, write: Write, count: int, *, prefix: str = "", rejected: str = "", round: int = 0
    ) -> list[Candidate]:
        """See `Task.propose`."""
        options = {"prefix": prefix, "rejected": rejected, "round": round}
        return self.candidates(problem, write(problem, make_draft(self, self._prompts, problem, count, **options)))

    def candidates(self, problem: Problem, texts: Sequence[str]) -> list[Candidate]:
        """Reads the queries of replies, and joins those with the same normal form."""
        names = self._names(problem.source)
        return gather(texts, lambda reply: text.normalise(query(reply) or "", names))

    def check(self, plan: str) -> str:
        """See `Task.check`."""
        return text.refusal(plan)

    def execute(self, jobs: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Outcome]]:
        """See `Task.execute`; a plan is executed once."""
        unknown = [
            (problem, [plan for plan in dict.fromkeys(plans) if (problem.source, plan) not in self._known])
            for problem, plans in jobs
        ]
        todo = [job for job in unknown if job[1]]
        fresh = {
            (problem.source, plan): outcome
            for (problem, plans), outcomes in zip(todo, self._execute(todo), strict=True)
            for plan, outcome in zip(plans, outcomes, strict=True)
        }
        self._known |= {key: each for key, each in fresh.items() if each.error or len(each.value.rows) <= KEPT_ROWS}
        return [
            [fresh.get(key) or self._known[key] for key in ((problem.source, plan) for plan in plans)]
            for problem, plans in jobs
        ]

    def _execute(self, jobs: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Outcome]]:
        calls = []
        for problem, plans in jobs:
            queries = [query for plan in plans if not self.check(plan) for query in (plan, self._judged(plan))]
            calls.append((Path(problem.source), list(dict.fromkeys(queries))))
        results = self._runner.run(calls)
        found = [dict(zip(queries, each, strict=True)) for (_, queries), each in zip(calls, results, strict=True)]
        return [[self._outcome(plan, each) for plan in plans] for (_, plans), each in zip(jobs, found, strict=True)]

    def _judged(self, plan: str) -> str:
        """Returns the query whose rows are compared."""
        return plan if self._keep_distinct else text.without_distinct(plan)

    def _outcome(self, plan: str, found: Mapping[str, QueryResult]) -> Outcome:
        if refusal := self.check(plan):
            return Outcome(error=refusal, kind="no query")
        result, judged = found[plan], found[self._judged(plan)]
        if result.error:
            return Outcome(error=result.error, kind=result.kind)
        rows = result.rows if judged.error else judged.rows
        answer = Answer(result.columns, result.rows, rows, text.is_ordered(plan))
        return Outcome(answer, preview(result), empty=not result.rows)

    def gold(self, problems: Sequence[Problem]) -> list[Outcome]:
        """See `Task.gold`."""
        return [outcomes[0] for outcomes in self.execute([(problem, [problem.gold]) for problem in problems])]

    def equal(self, found: Outcome, wanted: Outcome) -> bool:
        """Compares rows as multisets, or in order if the wanted query has an ORDER BY; columns in any order."""
        return same_result(list(found.value.judged), list(wanted.value.judged), ordered=wanted.value.ordered)

    def next_step(self, plan: str, prefix: str) -> str:
        """See `Task.next_step`; a step is a clause."""
        return text.next_clause(plan, prefix)

    def tables(self, database: str) -> list[dict[str, Any]]:
        """Returns the tables of a database, read once; see `QueryRunner.tables`."""
        if database not in self._schemas:
            self._schemas[database] = self._runner.tables(Path(database))
        return self._schemas[database]

    def shared_values(self, database: str, joins: Sequence[Join]) -> dict[Join, int | None]:
        """Counts the values that the columns of joins have in common; None where the query fails."""
        ((*results,),) = (
            self._runner.run([(Path(database), [count_shared(join) for join in joins])]) if joins else ((),)
        )
        counts = [None if result.error else result.rows[0][0] for result in results]
        return dict(zip(joins, counts, strict=True))

    def _names(self, database: str) -> frozenset[str]:
        tables = self.tables(database)
        names = [name for table in tables for name in (table["name"], *table["columns"])]
        return frozenset(name.lower() for name in names)


def schema_text(tables: Sequence[Mapping[str, Any]]) -> str:
    """Writes a schema for a prompt: a line a table, `name: column, column`, in lower case."""
    return "\n".join(f"{table['name']}: {', '.join(table['columns'])}".lower() for table in tables)


def preview(result: QueryResult) -> str:
    """Shows the first rows of a result, long cells cut."""
    lines = [" | ".join(result.columns)]
    lines += [" | ".join(str(value)[:PREVIEW_CELL] for value in row) for row in result.rows[:PREVIEW_ROWS]]
    count = len(result.rows)
    return "\n".join([*lines, f"({count} row{'' if count == 1 else 's'})"])
