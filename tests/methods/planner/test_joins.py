"""Joins of queries, keys that connect them, and the list of suspicious gold queries."""

from __future__ import annotations

import pytest

from smallr.methods.planner.pipeline import run_planner
from smallr.methods.planner.sql.joins import Join, Keys, joins
from tests.methods.planner.conftest import make_database
from tests.methods.planner.test_pipeline import config, write  # noqa: F401 (a fixture)


def table(name: str, columns: str, primary: str, *foreign: tuple[str, str, str | None]) -> dict:
    """A table as `QueryRunner.tables` gives it."""
    return {"name": name, "columns": columns.split(), "primary_key": primary.split(), "foreign_keys": list(foreign)}


TABLES = [
    table("Shop", "id city town_id", "id", ("town_id", "Town", None)),
    table("Item", "id name shop_id", "id", ("shop_id", "Shop", "id")),
    table("Sale", "item_id shop day", "", ("item_id", "Item", "id"), ("shop", "shop", "id")),
    table("Town", "key name", "key"),
]


@pytest.mark.parametrize(
    ("sql", "found", "connected"),
    [
        ("SELECT city FROM shop JOIN item ON item.shop_id = shop.id", "item.shop_id = shop.id", True),
        ("SELECT 1 FROM Shop AS T1 JOIN Item AS T2 ON T1.ID = T2.ID", "item.id = shop.id", False),
        ("SELECT 1 FROM shop, item WHERE shop_id = shop.id AND name = 'x'", "item.shop_id = shop.id", True),
        ("SELECT 1 FROM item JOIN sale USING (id)", None, None),  # sale has no such column
        ("SELECT city FROM shop WHERE id NOT IN (SELECT shop_id FROM item)", "item.shop_id = shop.id", True),
        ("SELECT city FROM shop WHERE id IN (SELECT item_id FROM sale)", "sale.item_id = shop.id", False),
        ("SELECT 1 FROM sale JOIN item ON sale.shop = item.shop_id", "item.shop_id = sale.shop", True),  # over shop.id
        ("SELECT 1 FROM item a JOIN item b ON a.name = b.name", "item.name = item.name", True),
        ("SELECT 1 FROM shop JOIN town ON town_id = key", "shop.town_id = town.key", True),  # the target's primary key
        (
            "SELECT 1 FROM (SELECT shop_id AS s FROM item) AS x JOIN shop ON x.s = shop.id",
            "item.shop_id = shop.id",
            True,
        ),
        ("SELECT 1 FROM shop WHERE EXISTS (SELECT 1 FROM item WHERE item.id = shop.id)", "item.id = shop.id", False),
        ("SELECT 1 FROM shop JOIN (SELECT count(*) AS n FROM item) AS x ON x.n = shop.id", None, None),
        ("SELECT FROM WHERE", None, None),
        ("SELECT 1 UNION SELECT item.id FROM item JOIN shop ON item.id = shop.id", "item.id = shop.id", False),
    ],
)
def test_what_is_joined_and_whether_keys_connect_it(sql, found, connected):
    every = joins(sql, TABLES)
    assert [str(join) for join in every] == ([] if found is None else [found])
    assert [Keys(TABLES).connects(join) for join in every] == ([] if found is None else [connected])


def test_values_are_counted_as_a_join_compares_them(task, tmp_path):
    database = make_database(
        tmp_path / "x.sqlite",
        "CREATE TABLE a (n INTEGER, t TEXT); CREATE TABLE b (t TEXT, u TEXT);"
        "INSERT INTO a VALUES (1, 'x'), (2, 'y'), (2, NULL); INSERT INTO b VALUES ('2', ' x'), ('3', NULL);",
    )
    number, spaced = Join(("a", "n"), ("b", "t")), Join(("a", "t"), ("b", "u"))
    found = task.shared_values(str(database), [number, spaced, Join(("a", "n"), ("b", "nothing"))])
    assert list(found.values()) == [1, 0, None]
    assert task.shared_values(str(database), []) == {}


def test_gold_queries_that_cannot_be_trusted_are_listed(config, tmp_path):  # noqa: F811
    gold = {
        "fails": "SELECT cost FROM shop",
        "empty": "SELECT city FROM shop WHERE city = 'Rome'",
        "wrong": "SELECT city FROM shop JOIN item ON item.id = shop.id",
        "fine": "SELECT city FROM shop JOIN item ON item.shop_id = shop.id",
    }
    rows = [
        {"id": k, "question": k, "database": "shop", "gold": v, "candidates": ["SELECT 1"]} for k, v in gold.items()
    ]
    write(tmp_path, rows)
    config.data.instances = 1
    report = run_planner(config, tmp_path / "run")
    reasons = {row["id"]: row["reasons"] for row in report["gold"]}
    assert reasons == {
        "fails": ["it fails: no such column: cost"],
        "empty": ["it returns nothing, on 1 further instances too"],
        "wrong": ["it joins item.id = shop.id, which no foreign key connects (3 values in common)"],
    }
    assert (
        "3 (1 fail, 1 return nothing, 1 join what no foreign key connects)"
        in (tmp_path / "run" / "report.md").read_text()
    )
    assert "**wrong** (shop)" in (tmp_path / "run" / "gold.md").read_text()
