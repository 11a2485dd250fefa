"""Runs queries on a SQLite file that they can only read, each within limits.

The functions here are made for a worker of `smallr.evals.isolation.pool`: a query that no limit can interrupt ends with
the process. The file is opened immutable, so that SQLite neither locks it nor writes a log beside it.
"""

from __future__ import annotations

import dataclasses
import re
import signal
import sqlite3
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_STEPS = 2000  # of SQLite's virtual machine between two looks at the clock
# What an error's message says about its kind, the first that is found.
_KINDS = (
    ("several statements", r"one statement at a time"),
    ("refused", r"not authorized|authorization denied|prohibited|attempt to write|readonly"),
    ("time", r"interrupted"),
    ("size", r"too big|too many|too large|too long|limit"),
    ("name", r"no such|ambiguous column|has no column"),
    ("syntax", r"syntax error|incomplete input|unrecognized token|misuse|wrong number of arguments"),
    ("database", r"malformed|not a database|unable to open|disk I/O|locked"),
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one query.

    Attributes:
      seconds: of its work.
      rows: that it may return; more are an error.
      cell_bytes: of a value, computed or stored.
      result_bytes: of all values that it returns.
      heap_bytes: that SQLite may hold.
    """

    seconds: float = 5.0
    rows: int = 10_000
    cell_bytes: int = 1_000_000
    result_bytes: int = 8_000_000
    heap_bytes: int = 256 << 20


def connect(database: str, limits: Limits) -> sqlite3.Connection:
    """Opens a file that queries can only read: no attached files, extensions, pragmas or temporary files."""
    connection = sqlite3.connect(f"file:{urllib.parse.quote(database)}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda data: data.decode(errors="replace")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA hard_heap_limit = {limits.heap_bytes}")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.cell_bytes)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.setlimit(sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0)
    connection.set_authorizer(_authorize)
    return connection


def run_queries(
    database: str, queries: Sequence[str], kill_after: float = 0.0, **limits: float
) -> list[dict[str, Any]]:
    """Runs queries one after the other on one connection.

    Args:
      database: the file.
      queries: in order.
      kill_after: seconds of a query after which the process ends, since single steps of SQLite cannot be interrupted: a
        `printf` with a width of a billion takes a quarter of a minute. 0: never.
      **limits: fields of `Limits`.

    Returns:
      For each: columns, rows (of JSON's types; blobs as text that no query returns), error, kind of the error, seconds.
    """
    allowed = Limits(**limits)
    try:
        connection = connect(database, allowed)
    except sqlite3.Error as error:
        return [_failure(error, time.perf_counter()) for _ in queries]
    try:
        results = []
        for query in queries:
            signal.setitimer(signal.ITIMER_REAL, kill_after)  # the signal's default action ends the process
            results.append(_run(connection, query, allowed))
        return results
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.close()


def describe(database: str) -> dict[str, Any]:
    """Reads the tables of a file: names, columns with their types, primary keys and foreign keys."""
    connection = sqlite3.connect(f"file:{urllib.parse.quote(database)}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda data: data.decode(errors="replace")
    try:
        listed = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!' ORDER BY rowid"
        )
        return {"tables": [_table(connection, name) for (name,) in listed.fetchall()]}
    finally:
        connection.close()


def _table(connection: sqlite3.Connection, name: str) -> dict[str, Any]:
    quoted = '"' + name.replace('"', '""') + '"'
    columns = connection.execute(f"PRAGMA table_info({quoted})").fetchall()
    foreign = connection.execute(f"PRAGMA foreign_key_list({quoted})").fetchall()
    return {
        "name": name,
        "columns": [column for _, column, *_ in columns],
        "types": [kind for _, _, kind, *_ in columns],
        "primary_key": [column for _, column, _, _, _, key in columns if key],
        "foreign_keys": [[column, table, target] for _, _, table, column, target, *_ in foreign],
    }


def _run(connection: sqlite3.Connection, query: str, limits: Limits) -> dict[str, Any]:
    start = time.perf_counter()
    deadline = start + limits.seconds
    connection.set_progress_handler(lambda: int(time.perf_counter() > deadline), _STEPS)
    try:
        cursor = connection.execute(query)
        if cursor.description is None:
            raise sqlite3.ProgrammingError("syntax error: it is no query")
        rows, size = [], 0
        for row in cursor:
            rows.append([_value(value) for value in row])
            size += sum(len(value) if isinstance(value, str) else 8 for value in rows[-1])
            if len(rows) > limits.rows:
                raise sqlite3.DataError(f"too many rows: more than {limits.rows}")
            if size > limits.result_bytes:
                raise sqlite3.DataError(f"too large: more than {limits.result_bytes} bytes")
        if time.perf_counter() > deadline:
            raise sqlite3.OperationalError("interrupted")  # a single long step has passed over the handler
    except (sqlite3.Error, sqlite3.Warning, MemoryError, ValueError, OverflowError) as error:
        return _failure(error, start)
    return {
        "columns": [name for name, *_ in cursor.description],
        "rows": rows,
        "error": "",
        "kind": "",
        "seconds": round(time.perf_counter() - start, 6),
    }


def _failure(error: Exception, start: float) -> dict[str, Any]:
    message = str(error) or type(error).__name__
    kind = next((name for name, pattern in _KINDS if re.search(pattern, message, re.IGNORECASE)), "other")
    kind = "memory" if isinstance(error, MemoryError) else kind
    seconds = round(time.perf_counter() - start, 6)
    return {"columns": [], "rows": [], "error": message[:300], "kind": kind, "seconds": seconds}


def _value(value: Any) -> Any:
    return f"\0blob {value.hex()}" if isinstance(value, bytes) else value


def _authorize(action: int, first: str | None, second: str | None, *_: Any) -> int:
    harmless = action in _ALLOWED and not (action == sqlite3.SQLITE_FUNCTION and second == "load_extension")
    return sqlite3.SQLITE_OK if harmless else sqlite3.SQLITE_DENY
