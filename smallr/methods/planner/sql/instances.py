"""Makes further instances of a database, so that a query that is right by chance on one of them fails on another.

The idea is that of test suites for SQL (arXiv 2010.02840): values are varied, keys and what refers to them are kept.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_SHARE_REPLACED = 0.3  # of the cells of a column that take another value of that column
_SHARE_DELETED = 0.2  # of the rows of a table that no other one refers to
_KEY_ENDINGS = ("id", "code", "key")


def make_instances(
    database: Path, tables: Sequence[Mapping[str, Any]], folder: Path, count: int, seed: int
) -> list[Path]:
    """Writes instances of a database to a folder; the database itself is only read.

    In each table the values of every column that is no key are shuffled, and a share of them is replaced by other values
    of the same column: so constants of queries still occur. A share of the rows is deleted from tables that no other one
    refers to. Keys are declared primary and foreign keys, columns whose name stands in several tables, and columns whose
    name ends in id, code or key, since many schemas do not declare theirs.

    Args:
      database: a SQLite file that `check_database` accepts.
      tables: of it, as `QueryRunner.tables` gives them.
      folder: for the files `NAME.1.sqlite` and so on.
      count: of instances.
      seed: of the draws, which depend on it, the file's name and the instance's number.
    """
    made = []
    for number in range(1, count + 1):
        path = folder / f"{database.stem}.{number}.sqlite"
        shutil.copyfile(database, path)
        path.chmod(0o600)
        rng = random.Random(f"{seed} {database.stem} {number}")
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.text_factory = lambda data: data.decode(errors="surrogateescape")
            _drop_triggers(connection)
            for table in tables:
                _vary(connection, table, _keys(table, tables), _is_referred_to(table, tables), rng)
        made.append(path)
    return made


def _keys(table: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]) -> set[str]:
    """Returns the columns of a table that keep their values, in lower case."""
    occurrences = Counter(name.lower() for each in tables for name in set(each["columns"]))
    keys = {name.lower() for name in table["primary_key"]}
    keys |= {column.lower() for column, _, _ in table["foreign_keys"]}
    keys |= {
        (target or "").lower()
        for each in tables
        for _, name, target in each["foreign_keys"]
        if name.lower() == table["name"].lower()
    }
    return keys | {
        name.lower()
        for name in table["columns"]
        if occurrences[name.lower()] > 1 or name.lower().endswith(_KEY_ENDINGS)
    }


def _is_referred_to(table: Mapping[str, Any], tables: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rows of another table may hang on those of this one: by a foreign key, or by a primary key of the same name."""
    name, keys = table["name"].lower(), {key.lower() for key in table["primary_key"]}
    others = [each for each in tables if each is not table]
    declared = any(target.lower() == name for each in others for _, target, _ in each["foreign_keys"])
    return declared or any(keys & {column.lower() for column in each["columns"]} for each in others)


def _vary(
    connection: sqlite3.Connection, table: Mapping[str, Any], keys: set[str], referred_to: bool, rng: random.Random
) -> None:
    name = _quoted(table["name"])
    try:
        rows = [row for (row,) in connection.execute(f"SELECT rowid FROM {name} ORDER BY rowid")]
    except sqlite3.OperationalError:  # a table without rowids, or a virtual one
        return
    for column in table["columns"]:
        if column.lower() in keys:
            continue
        values = [value for (value,) in connection.execute(f"SELECT {_quoted(column)} FROM {name} ORDER BY rowid")]
        drawn = rng.sample(values, len(values))
        drawn = [rng.choice(values) if rng.random() < _SHARE_REPLACED else value for value in drawn]
        connection.executemany(
            f"UPDATE OR IGNORE {name} SET {_quoted(column)} = ? WHERE rowid = ?", zip(drawn, rows, strict=True)
        )
    if not referred_to:
        gone = [(row,) for row in rows if rng.random() < _SHARE_DELETED]
        connection.executemany(f"DELETE FROM {name} WHERE rowid = ?", gone[: len(rows) - 1])


def _drop_triggers(connection: sqlite3.Connection) -> None:
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {_quoted(name)}")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
