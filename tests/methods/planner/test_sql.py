"""SQL as text, and as a task: normal form, clauses, results that are equal."""

from __future__ import annotations

import pytest

from smallr.methods.planner.sql.components import exact_match, matching_parts
from smallr.methods.planner.sql.task import SqlTask
from smallr.methods.planner.sql.text import next_clause, normalise, refusal, without_distinct

NAMES = {"item", "shop", "name", "price", "city", "id", "shop_id"}


@pytest.mark.parametrize(
    ("sql", "normal"),
    [
        ("select  Name from ITEM ;", "SELECT name FROM item;"),
        ('SELECT * FROM shop WHERE city = "Bonn"', "SELECT * FROM shop WHERE city = 'Bonn';"),
        ("SELECT * FROM shop WHERE city='O''Hara'", "SELECT * FROM shop WHERE city = 'O''Hara';"),
        ('SELECT "Name" FROM item', 'SELECT "name" FROM item;'),
        ('SELECT Name AS "The Name" FROM item ORDER BY "The Name"', None),
        ("SELECT COUNT(DISTINCT Price), t1.Name FROM Item t1", "SELECT count(DISTINCT price), t1.name FROM item t1;"),
        ("SELECT a FROM b -- why\n WHERE c<>1", "SELECT a FROM b WHERE c <> 1;"),
        ("I think it is\nSELECT", "I think it is\nSELECT"),
        ("DROP TABLE item", "DROP TABLE item"),
        ("SELECT 1; SELECT 2", "SELECT 1; SELECT 2"),
        ("SELECT ((", "SELECT (("),
    ],
)
def test_normal_form(sql, normal):
    found = normalise(sql, NAMES)
    if normal is None:
        normal = 'SELECT name AS "the name" FROM item ORDER BY "the name";'
    assert found == normal
    assert normalise(found, NAMES) == found


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("", "no query"),
        ("-- nothing\n", "no query"),
        ("I do not know", "must begin"),
        ("DELETE FROM item", "must begin"),
        ("SELECT 1; SELECT 2", "several"),
        ("SELECT 1; DROP TABLE item", "several"),
        ("SELECT ';' ; -- end;\n ;", ""),
        ("/* a */ WITH x AS (SELECT 1) SELECT * FROM x;", ""),
        ("(SELECT 1)", ""),
    ],
)
def test_refusal(sql, says):
    assert says in refusal(sql) if says else not refusal(sql)


def test_clauses():
    plan = "SELECT a FROM b LEFT JOIN c ON x WHERE d IN (SELECT e FROM f) ORDER BY a LIMIT 1;"
    steps = [""]
    while steps[-1] != plan:
        steps.append(next_clause(plan, steps[-1]))
    assert steps[1:] == [
        "SELECT a",
        "SELECT a FROM b",
        "SELECT a FROM b LEFT JOIN c ON x",
        "SELECT a FROM b LEFT JOIN c ON x WHERE d IN (SELECT e FROM f)",
        "SELECT a FROM b LEFT JOIN c ON x WHERE d IN (SELECT e FROM f) ORDER BY a",
        plan,
    ]


def test_distinct_is_left_out_outside_quotes():
    assert without_distinct("SELECT DISTINCT a, 'distinct' FROM t") == "SELECT  a, 'distinct' FROM t"


@pytest.mark.parametrize(
    ("found", "gold", "equal"),
    [
        ("SELECT price, name FROM item", "SELECT name, price FROM item", True),  # columns in any order
        ("SELECT name FROM item ORDER BY id DESC", "SELECT name FROM item", True),  # rows too
        ("SELECT name FROM item ORDER BY id DESC", "SELECT name FROM item ORDER BY id", False),
        ("SELECT DISTINCT city FROM shop", "SELECT city FROM shop", False),  # duplicates count
        ("SELECT price FROM item WHERE id = 4", "SELECT NULL", True),
        ("SELECT NULL", "SELECT 0", False),
        ("SELECT 1.0000000001", "SELECT 1", True),  # floats with tolerance
        ("SELECT 1.001", "SELECT 1", False),
        ("SELECT name FROM item WHERE id > 9", "SELECT city FROM shop WHERE id > 9", True),  # both empty
        ("SELECT name FROM item WHERE id > 9", "SELECT city FROM shop", False),
        ("SELECT picture FROM shop WHERE id = 1", "SELECT x'00ff'", True),
        ("SELECT picture FROM shop WHERE id = 1", "SELECT x'00fe'", False),
    ],
)
def test_results_that_are_equal(task, problem, found, gold, equal):
    ((one, other),) = task.execute([(problem, [found, gold])])
    assert not one.error
    assert not other.error
    assert task.equal(one, other) is equal


def test_distinct_can_be_left_out_of_the_comparison(runner, prompts, problem):
    task = SqlTask(runner, prompts, keep_distinct=False)
    ((one, other),) = task.execute([(problem, ["SELECT DISTINCT city FROM shop", "SELECT city FROM shop"])])
    assert task.equal(one, other)
    assert one.value.rows == (("Ulm",), ("Bonn",))  # what a person is shown is what the query returned


def test_proposals_are_read_from_what_models_write(task, problem):
    replies = [
        "```sql\nSELECT count(*) FROM item WHERE price > 2;\n```",
        "The query is: select COUNT(*) from Item where price>2",
        "I do not know.",
        "SELECT 1; DROP TABLE item",
        "",
    ]
    found = task.propose(problem, lambda _, draft: replies, 5)
    assert [(each.plan, each.votes) for each in found] == [
        ("SELECT count(*) FROM item WHERE price > 2;", 2),
        ("I do not know.", 1),
        ("SELECT 1; DROP TABLE item", 1),
    ]
    ((right, prose, several),) = task.execute([(problem, [each.plan for each in found])])
    assert right.preview == "count(*)\n2\n(1 row)"
    assert [each.kind for each in (prose, several)] == ["no query", "no query"]


def test_the_schema_is_a_line_a_table(problem):
    assert problem.context == "item: id, name, price, shop_id\nshop: id, city, picture"


def test_previews_are_cut(task, problem):
    ((outcome,),) = task.execute(
        [
            (
                problem,
                [
                    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9) "
                    "SELECT i, printf('%.*c', 500, 'x') FROM n"
                ],
            )
        ]
    )
    lines = outcome.preview.splitlines()
    assert len(lines) == 7
    assert len(lines[1]) == len("1 | ") + 128
    assert lines[-1] == "(9 rows)"


@pytest.mark.parametrize(
    ("found", "gold", "differs"),
    [
        ("SELECT a, b FROM t", "select B, A from T", ()),
        ("SELECT x.a FROM t AS x JOIN u AS y ON x.i = y.i", "SELECT t.a FROM t JOIN u ON u.i = t.i", ()),
        ("SELECT a FROM t WHERE b = 1 AND c = 'X'", "SELECT a FROM t WHERE c = 'X' AND b = 1", ()),
        ("SELECT a FROM t WHERE c = 'x'", "SELECT a FROM t WHERE c = 'X'", ("where",)),
        ("SELECT a FROM t ORDER BY a, b", "SELECT a FROM t ORDER BY b, a", ("order",)),
        ("SELECT count(*) FROM t GROUP BY a LIMIT 1", "SELECT count(*) FROM t", ("group", "limit")),
        ("SELECT a FROM t UNION SELECT a FROM u", "SELECT a FROM t INTERSECT SELECT a FROM u", ("set",)),
        ("SELECT DISTINCT a FROM t", "SELECT a FROM t", ("select",)),
    ],
)
def test_parts_of_queries(found, gold, differs):
    parts = matching_parts(found, gold)
    assert tuple(name for name, same in parts.items() if not same) == differs
    assert exact_match(found, gold) is not bool(differs)
    assert exact_match("SELECT ((", gold) is None
