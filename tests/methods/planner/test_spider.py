"""Execution on real databases against plain sqlite3, a multiset comparison written here, and the published labels."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import itertools
import json
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from smallr.evals.isolation.queries import QueryRunner
from smallr.methods.planner.sql.task import SqlTask

SPIDER = Path(__file__).parents[4] / "shared" / "data" / "text2sql" / "spider_dev"
EVERY = 5  # rows of which one is tested


@pytest.fixture(scope="module")
def rows():
    if not SPIDER.is_dir():
        pytest.skip(f"needs {SPIDER}")
    with gzip.open(SPIDER / "dev_candidates.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in itertools.islice(file, 0, None, EVERY)]


def plainly(database: Path, sql: str):
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.text_factory = lambda data: data.decode(errors="replace")
        try:
            return connection.execute(sql).fetchall()
        except sqlite3.Error:
            return None


def same(found, wanted, ordered: bool) -> bool:
    """Tries all orders of columns whose values agree as multisets."""
    if found is None or wanted is None or len(found) != len(wanted):
        return False
    if not wanted:
        return True
    width = len(wanted[0])
    if len(found[0]) != width:
        return False
    rows = [tuple(round(v, 6) if isinstance(v, float) else v for v in row) for row in wanted]
    for order in itertools.permutations(range(width)):
        moved = [tuple(round(row[i], 6) if isinstance(row[i], float) else row[i] for i in order) for row in found]
        if (moved == rows) if ordered else (Counter(moved) == Counter(rows)):
            return True
    return False


@pytest.mark.slow
def test_labels_agree_with_an_independent_computation_and_the_published_ones(rows, prompts):
    databases = {row["db_id"]: SPIDER / "database" / f"{row['db_id']}.sqlite" for row in rows}
    digests = {path: hashlib.sha256(path.read_bytes()).digest() for path in databases.values()}
    disagreements, count = [], 0
    with QueryRunner(2) as runner:
        task = SqlTask(runner, prompts, keep_distinct=True)
        problems = [
            task.problem(str(row["question_id"]), row["question"], databases[row["db_id"]], row["gold"]) for row in rows
        ]
        normal = [
            task.candidates(p, [c["sql"] for c in row["candidates"]]) for p, row in zip(problems, rows, strict=True)
        ]
        found = task.execute(
            [(p, [c["sql"] for c in row["candidates"]]) for p, row in zip(problems, rows, strict=True)]
        )
        joined = task.execute([(p, [c.plan for c in each]) for p, each in zip(problems, normal, strict=True)])
        gold = task.gold(problems)
        for row, problem, outcomes, wanted, plans, again in zip(
            rows, problems, found, gold, normal, joined, strict=True
        ):
            reference = plainly(Path(problem.source), row["gold"])
            right = Counter()
            for candidate, outcome in zip(row["candidates"], outcomes, strict=True):
                ours = not outcome.error and task.equal(outcome, wanted)
                plain = plainly(Path(problem.source), candidate["sql"])
                theirs = same(plain, reference, "order by" in row["gold"].lower())
                count += 1
                right[ours] += 1
                if not ours == theirs == candidate["correct"] or bool(outcome.error) == candidate["executes"]:
                    disagreements.append((row["question_id"], candidate["sql"], ours, theirs, candidate["correct"]))
            votes = Counter()  # the normal form changes no result
            for plan, outcome in zip(plans, again, strict=True):
                votes[not outcome.error and task.equal(outcome, wanted)] += plan.votes
            assert votes == right, row["question_id"]
    assert count > 1000
    assert not disagreements
    assert {path: hashlib.sha256(path.read_bytes()).digest() for path in digests} == digests
