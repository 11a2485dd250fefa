"""Runs untrusted queries on SQLite files from outside: workers that can be killed, and files that are checked first."""

from __future__ import annotations

import dataclasses
import sqlite3
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError
from smallr.evals.isolation.pool import Answer, Pool
from smallr.evals.isolation.sqlite import Limits

_HEADER = b"SQLite format 3\0"
_WORKER = "smallr.evals.isolation.sqlite"
_WAL = 2  # in byte 18 of the header: the file is written by way of a write-ahead log
# Beyond this much wall time a call of many queries is taken for stuck, and its queries are run one by one.
_CALL_SECONDS = 30.0
_GRACE = 0.5  # seconds beyond a query's limit after which its process is killed


@dataclasses.dataclass(frozen=True)
class QueryResult:
    """What one query came to.

    Attributes:
      columns, rows: what it returned; nothing where it failed.
      error: why it failed, in SQLite's words; empty if it did not.
      kind: of the error: time, size, memory, refused, several statements, syntax, name, database, crash or other.
      seconds: that it took.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    error: str = ""
    kind: str = ""
    seconds: float = 0.0


class QueryRunner:
    """Runs queries in processes, all queries of a call in one of them.

    Args:
      workers: processes at once.
      limits: of each query.
    """

    def __init__(self, workers: int = 2, limits: Limits | None = None):
        self.limits = limits = limits or Limits()
        memory = limits.heap_bytes + (1 << 30)
        self._many = Pool(f"{_WORKER}:run_queries", workers, max(_CALL_SECONDS, 2 * limits.seconds), memory)
        self._single = Pool(f"{_WORKER}:run_queries", 1, limits.seconds + _GRACE, memory)
        self._describer = Pool(f"{_WORKER}:describe", 1, _CALL_SECONDS, memory)

    def run(self, jobs: Sequence[tuple[Path, Sequence[str]]]) -> list[list[QueryResult]]:
        """Runs the queries of each (database, queries); what goes wrong with a query is in its result."""
        answers = self._many.map([self._call(*job) for job in jobs])
        return [
            self._one_by_one(*job, answer) if answer.problem else _results(answer.value)
            for job, answer in zip(jobs, answers, strict=True)
        ]

    def tables(self, database: Path) -> list[dict[str, Any]]:
        """Returns the tables of a file, see `sqlite.describe`.

        Raises:
          UserError: see `check_database`; or it has no tables.
        """
        check_database(database)
        (answer,) = self._describer.map([{"database": str(database)}])
        if answer.problem:
            raise UserError(f"{database} cannot be read as a SQLite database: {answer.problem}")
        if not answer.value["tables"]:
            raise UserError(f"{database} has no tables: name the file that holds the data")
        return answer.value["tables"]

    def close(self) -> None:
        """Ends the processes."""
        for pool in (self._many, self._single, self._describer):
            pool.close()

    def __enter__(self) -> QueryRunner:
        """Returns the runner."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def _call(self, database: Path, queries: Sequence[str]) -> dict[str, Any]:
        limits = {**dataclasses.asdict(self.limits), "kill_after": self.limits.seconds + 2 * _GRACE}
        return {"database": str(database), "queries": list(queries), **limits}

    def _one_by_one(self, database: Path, queries: Sequence[str], answer: Answer) -> list[QueryResult]:
        """Finds out which query of a call ended the worker; its neighbours get their results."""
        if len(queries) == 1 and not answer.timed_out:
            return [_failure(answer)]
        answers = self._single.map([self._call(database, [query]) for query in queries])
        return [_failure(each) if each.problem else _results(each.value)[0] for each in answers]


def check_database(path: Path) -> None:
    """Refuses what is no SQLite database, or one that cannot be read without writing.

    Raises:
      UserError: names the file, and says what to do.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        raise UserError(f"database {path} cannot be read: {error.strerror}") from error
    if not header:
        raise UserError(f"database {path} is empty: name the file that holds the data")
    if not header.startswith(_HEADER) or len(header) < 100:
        raise UserError(f"{path} is no SQLite 3 database, or it is encrypted: decrypt or export it first")
    for end, advice in (("-wal", "PRAGMA wal_checkpoint(TRUNCATE)"), ("-journal", "SELECT 1 FROM sqlite_master")):
        log = path.with_name(path.name + end)
        if log.exists() and log.stat().st_size:
            raise UserError(
                f"database {path} has changes in {log.name} that are not in the file yet, and it is never written here: "
                f"close what writes it, or run sqlite3 {path.name} '{advice}', or name a copy"
            )
    if header[18] != _WAL:
        _check_lock(path)


def _check_lock(path: Path) -> None:
    """Asks for the lock that a reader needs, which writes nothing."""
    connection = sqlite3.connect(f"file:{urllib.parse.quote(str(path))}?mode=ro", uri=True, timeout=1.0)
    try:
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
    except sqlite3.Error as error:
        raise UserError(
            f"database {path} cannot be read: {error}: close what writes it, or name a whole copy"
        ) from error
    finally:
        connection.close()


def _results(values: Sequence[dict[str, Any]]) -> list[QueryResult]:
    return [
        QueryResult(
            tuple(each["columns"]), tuple(map(tuple, each["rows"])), each["error"], each["kind"], each["seconds"]
        )
        for each in values
    ]


def _failure(answer: Answer) -> QueryResult:
    return QueryResult(error=answer.problem or "", kind="time" if answer.timed_out else "crash")
