"""A small shop in a SQLite file, and the SQL task on it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from smallr.evals.isolation.queries import QueryRunner
from smallr.evals.isolation.sqlite import Limits
from smallr.methods.planner.prompts import FIELDS, load_prompts
from smallr.methods.planner.sql.task import SqlTask
from smallr.methods.planner.task import Problem

SCHEMA = """
CREATE TABLE item (id INTEGER PRIMARY KEY, Name TEXT, price REAL, shop_id INTEGER REFERENCES shop(id));
CREATE TABLE shop (id INTEGER PRIMARY KEY, city TEXT, picture BLOB);
INSERT INTO shop VALUES (1, 'Ulm', x'00ff'), (2, 'Bonn', NULL), (3, 'Bonn', NULL);
INSERT INTO item VALUES (1, 'pen', 1.5, 1), (2, 'ink', 4.0, 1), (3, 'cap', 4.0, 2), (4, NULL, NULL, 3);
"""


def make_database(path: Path, script: str = SCHEMA) -> Path:
    """Writes a SQLite file."""
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()
    return path


@pytest.fixture(scope="session")
def database(tmp_path_factory) -> Path:
    return make_database(tmp_path_factory.mktemp("databases") / "shop.sqlite")


@pytest.fixture(scope="session")
def runner() -> Iterator[QueryRunner]:
    with QueryRunner(1, Limits(seconds=1.0, rows=1000, cell_bytes=100_000)) as opened:
        yield opened


@pytest.fixture(scope="session")
def prompts():
    return load_prompts(dict.fromkeys(FIELDS, ""))


@pytest.fixture(scope="session")
def task(runner, prompts) -> SqlTask:
    return SqlTask(runner, prompts)


@pytest.fixture(scope="session")
def problem(task, database) -> Problem:
    return task.problem("q", "How many items cost more than 2?", database, "SELECT count(*) FROM item WHERE price > 2")
