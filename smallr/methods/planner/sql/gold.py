"""Lists the questions whose gold query cannot be trusted: it fails, returns nothing, or joins what does not belong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smallr.core.files import write_text
from smallr.methods.planner.sql.joins import Join, Keys, joins
from smallr.methods.planner.sql.task import SqlTask
from smallr.methods.planner.task import Problem

Rows = Sequence[Mapping[str, Any]]


def suspicious_joins(task: SqlTask, problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """Returns, of each problem, the joins of its gold query that no foreign key connects, or that can match no row.

    Returns:
      A row each: `id`, and `joins` with the `columns`, whether they are `connected`, and how many values they `share`
      (None where that cannot be counted).
    """
    found: list[list[Join]] = []
    keys = {source: Keys(task.tables(source)) for source in {problem.source for problem in problems}}
    for problem in problems:
        found.append(joins(problem.gold, task.tables(problem.source)) if problem.gold else [])
    wanted = {
        source: list(dict.fromkeys(j for p, js in zip(problems, found, strict=True) if p.source == source for j in js))
        for source in keys
    }
    shared = {
        (source, join): count
        for source, every in wanted.items()
        for join, count in task.shared_values(source, every).items()
    }
    rows = []
    for problem, every in zip(problems, found, strict=True):
        listed = [
            {
                "columns": str(join),
                "connected": keys[problem.source].connects(join),
                "share": shared[problem.source, join],
            }
            for join in every
        ]
        rows.append(
            {"id": problem.id, "joins": [each for each in listed if not each["connected"] or each["share"] == 0]}
        )
    return rows


def gold_report(executed: Rows, instances: Sequence[Rows], found: Rows) -> list[dict[str, Any]]:
    """Returns a row for each question whose gold query is suspicious, with the reasons."""
    rows = []
    for number, row in enumerate(executed):
        others = [instance[number] for instance in instances]
        if reasons := list(_reasons(row, others, found[number]["joins"])):
            rows.append(
                {
                    "id": row["id"],
                    "database": Path(row["source"]).stem,
                    "question": row["question"],
                    "gold": row["gold"],
                    "reasons": reasons,
                }
            )
    return rows


def _reasons(row: Mapping[str, Any], others: Rows, found: Rows) -> Iterator[str]:
    if row["gold"] and row["gold_error"]:
        yield f"it fails: {row['gold_error']}"
    if row["gold_empty"] and others and all(each["gold_empty"] for each in others):
        yield f"it returns nothing, on {len(others)} further instances too"
    elif row["gold_empty"]:
        yield "it returns nothing"
    for each in found:
        if not each["connected"]:
            values = "" if each["share"] is None else f" ({each['share']} values in common)"
            yield f"it joins {each['columns']}, which no foreign key connects{values}"
        else:
            yield f"it joins {each['columns']}, which have no value in common"


def write_gold(path: Path, rows: Rows) -> None:
    """Writes the list for people."""
    lines = ["# Gold queries to look at", "", f"{len(rows)} questions."]
    for row in rows:
        lines += ["", f"**{row['id']}** ({row['database']}) {row['question']}", "", f"    {row['gold']}", ""]
        lines += [f"- {reason}" for reason in row["reasons"]]
    write_text(path, "\n".join([*lines, ""]))
