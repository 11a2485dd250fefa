"""Further instances of a database: keys stay, values vary, and chance is found out."""

from __future__ import annotations

import hashlib
import sqlite3

from smallr.methods.planner.instances import agreement, execute_on_instances, with_all_instances
from smallr.methods.planner.rows import as_rows, execute_all
from smallr.methods.planner.sql.instances import make_instances
from smallr.methods.planner.task import Candidate
from tests.methods.planner.conftest import make_database

SCRIPT = """
CREATE TABLE shop (id INTEGER PRIMARY KEY, city TEXT, rank INTEGER);
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, price REAL, shop_id INTEGER REFERENCES shop(id));
CREATE TRIGGER t AFTER UPDATE ON shop BEGIN DELETE FROM item; END;
""" + "".join(
    f"INSERT INTO shop VALUES ({i}, 'city {i}', {i});\n"
    + "".join(f"INSERT INTO item VALUES ({10 * i + j}, 'item {i}{j}', {i + j}.5, {i});\n" for j in range(3))
    for i in range(1, 9)
)


def rows_of(path, query):
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_keys_stay_and_values_vary(tmp_path, runner):
    path = make_database(tmp_path / "shop.sqlite", SCRIPT)
    digest = hashlib.sha256(path.read_bytes()).digest()
    (tmp_path / "made").mkdir()
    made = make_instances(path, runner.tables(path), tmp_path / "made", 3, 0)
    assert hashlib.sha256(path.read_bytes()).digest() == digest
    contents = [each.read_bytes() for each in made]
    assert len(set(contents)) == 3
    (tmp_path / "again").mkdir()
    again = make_instances(path, runner.tables(path), tmp_path / "again", 3, 0)
    assert [rows_of(a, "SELECT * FROM item") for a in made] == [rows_of(b, "SELECT * FROM item") for b in again]
    keys, values = dict(rows_of(path, "SELECT id, shop_id FROM item")), rows_of(path, "SELECT city FROM shop")
    for each in made:
        kept = rows_of(each, "SELECT id, shop_id FROM item")
        assert 0 < len(kept) <= len(keys)
        assert all(keys[row] == shop for row, shop in kept)
        assert [row for (row,) in rows_of(each, "SELECT id FROM shop")] == list(range(1, 9))  # others refer to it
        assert set(rows_of(each, "SELECT city FROM shop")) <= set(values)
        assert rows_of(each, "SELECT city FROM shop") != values


def test_a_query_that_is_right_by_chance_is_found_out(tmp_path, task):
    path = make_database(tmp_path / "shop.sqlite", SCRIPT)
    problem = task.problem("q", "Which shop has the best rank?", path, "SELECT id FROM shop ORDER BY rank DESC LIMIT 1")
    plans = [
        Candidate("SELECT id FROM shop ORDER BY id DESC LIMIT 1;"),
        Candidate(f"{problem.gold};"),
        Candidate("SELECT 8;"),
    ]
    executed = as_rows(task, [problem], execute_all(task, [problem], [plans]))
    (tmp_path / "made").mkdir()
    instances = execute_on_instances(tmp_path / "made", task, [problem], [plans], 3, 0)
    assert [each["correct"] for each in executed[0]["candidates"]] == [True, True, True]
    assert [each["correct"] for each in with_all_instances(executed, instances)[0]["candidates"]] == [
        False,
        True,
        False,
    ]
    assert agreement(executed, instances) == {
        "instances": 3,
        "right_on_one": 3,
        "right_on_all": 1,
        "lost": 2,
        "questions_with_lost": ["q"],
        "gold_empty_everywhere": [],
    }
    none = task.problem("n", "Which shop is nameless?", path, "SELECT id FROM shop WHERE city = 'nowhere'")
    (tmp_path / "more").mkdir()
    found = execute_on_instances(tmp_path / "more", task, [none], [plans], 2, 0)
    assert agreement(as_rows(task, [none], execute_all(task, [none], [plans])), found)["gold_empty_everywhere"] == ["n"]
