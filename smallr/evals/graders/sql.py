"""Judges SQL by what it returns: executed on a SQLite file, read-only, in a process that can be killed."""

from __future__ import annotations

import itertools
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smallr.evals.extraction import query
from smallr.evals.graders.base import Job, Verdict
from smallr.evals.isolation.pool import Pool
from smallr.evals.isolation.sqlite import Limits, connect

MAX_ROWS = 10_000
MAX_VALUE_BYTES = 1_000_000
MAX_PAIRINGS = 20_000  # of columns, tried before two results count as different

Rows = list[tuple[Any, ...]]


class ExecutionMatch:
    """Grades a query as right if it returns what the gold query returns, in any order of columns.

    Rows are compared as a multiset; where the gold query has an ORDER BY, in order. Numbers are equal to six decimals.
    This is the execution accuracy of Spider (arXiv 1809.08887; the official script's `result_eq`) on one database,
    without its removal of DISTINCT.
    """

    def __init__(self, database: Callable[[Mapping[str, Any]], Path], workers: int = 2, seconds: float = 10.0):
        """`database` gives the SQLite file of a row; `seconds` limits both queries together."""
        self._database = database
        self._pool = Pool(f"{__name__}:judge", workers, seconds, memory_bytes=1 << 30)

    def grade(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Returns one verdict for each job; gold is a query."""
        found = [query(job.output) for job in jobs]
        answers = self._pool.map(
            [
                {"database": str(self._database(job.row)), "predicted": text or "", "gold": str(job.gold)}
                for job, text in zip(jobs, found, strict=True)
            ]
        )
        return [
            Verdict(False, text, answer.problem)
            if answer.problem
            else Verdict(answer.value["correct"] is True, text, answer.value["reason"])
            for text, answer in zip(found, answers, strict=True)
        ]

    def close(self) -> None:
        """Ends the processes."""
        self._pool.close()


def judge(database: str, predicted: str, gold: str) -> dict[str, Any]:
    """Returns whether the results are equal; runs in a worker."""
    try:
        wanted = execute(database, gold)
    except sqlite3.Error as error:
        return {"correct": False, "reason": f"the gold query fails: {error}"}
    if not predicted:
        return {"correct": False, "reason": "no answer"}
    try:
        found = execute(database, predicted)
    except (sqlite3.Error, sqlite3.Warning) as error:
        return {"correct": False, "reason": f"the query fails: {error}"}
    except MemoryError:
        return {"correct": False, "reason": "out of memory"}
    if len(found) > MAX_ROWS:
        return {"correct": False, "reason": f"more than {MAX_ROWS} rows"}
    return {"correct": same_result(found, wanted, ordered=bool(re.search(r"\border\s+by\b", gold, re.I))), "reason": ""}


def execute(database: str, sql: str) -> Rows:
    """Returns what a query returns, at most MAX_ROWS + 1 rows.

    Raises:
      sqlite3.Error: it is no single query, or does more than read.
    """
    connection = connect(database, Limits(cell_bytes=MAX_VALUE_BYTES))
    try:
        return connection.execute(sql).fetchmany(MAX_ROWS + 1)
    finally:
        connection.close()


def same_result(found: Rows, wanted: Rows, ordered: bool) -> bool:
    """Returns whether two results are equal up to the order of columns, and of rows unless `ordered`."""
    if len(found) != len(wanted):
        return False
    if not wanted:
        return True
    if len(found[0]) != len(wanted[0]):
        return False
    found, wanted = ([tuple(map(_canonical, row)) for row in rows] for rows in (found, wanted))
    summary = tuple if ordered else Counter
    columns = [summary(column) for column in zip(*found, strict=True)]
    partners = [
        [index for index, column in enumerate(columns) if column == summary(target)]
        for target in zip(*wanted, strict=True)
    ]
    rows = wanted if ordered else Counter(wanted)

    def pairings(chosen: tuple[int, ...]):
        if len(chosen) == len(partners):
            yield chosen
            return
        for index in partners[len(chosen)]:
            if index not in chosen:
                yield from pairings((*chosen, index))

    for pairing in itertools.islice(pairings(()), MAX_PAIRINGS):
        permuted = [tuple(row[index] for index in pairing) for row in found]
        if (permuted if ordered else Counter(permuted)) == rows:
            return True
    return False


def _canonical(value: Any) -> Any:
    """Returns a value by which equal ones are found; 1, 1.0 and 1.0000000001 are the same."""
    return round(value, 6) if isinstance(value, float) else value
