"""Untrusted queries: no effect on the file or beside it, each within its limits, and no process left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smallr.core.errors import UserError
from smallr.evals.isolation.queries import QueryRunner, check_database
from smallr.evals.isolation.sqlite import Limits
from tests.methods.planner.conftest import make_database

SECONDS = 0.3
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
# What each must be refused or stopped for.
HOSTILE = {
    "refused": [
        "INSERT INTO shop VALUES (9, 'x', NULL)",
        "UPDATE shop SET city = 'x'",
        "DELETE FROM shop",
        "REPLACE INTO shop VALUES (1, 'x', NULL)",
        "WITH x AS (SELECT 1) DELETE FROM shop",
        "INSERT INTO shop SELECT 9, 'x', NULL RETURNING *",
        "DROP TABLE shop",
        "CREATE TABLE t (a)",
        "CREATE TEMP TABLE t (a)",
        "CREATE TABLE t AS SELECT * FROM shop",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TEMP VIEW v AS SELECT 1",
        "CREATE INDEX i ON shop (city)",
        "CREATE TRIGGER t AFTER INSERT ON shop BEGIN DELETE FROM item; END",
        "CREATE VIRTUAL TABLE f USING fts5(a)",
        "CREATE VIRTUAL TABLE f USING rtree(a, b, c)",
        "ALTER TABLE shop ADD COLUMN x",
        "ALTER TABLE shop RENAME TO y",
        "ATTACH '{side}' AS other",
        "ATTACH ':memory:' AS other",
        "ATTACH 'file:{side}?mode=rwc' AS other",
        "DETACH main",
        "VACUUM INTO '{side}'",
        "PRAGMA query_only = 0",
        "PRAGMA journal_mode = WAL",
        "PRAGMA writable_schema = 1",
        "PRAGMA temp_store_directory = '{folder}'",
        "PRAGMA user_version = 7",
        "PRAGMA hard_heap_limit = 0",
        "PRAGMA table_info(shop)",
        "PRAGMA database_list",
        "SELECT * FROM pragma_database_list",
        "SELECT * FROM pragma_table_info('shop')",
        "SELECT load_extension('{side}')",
        "SELECT load_extension('libc.so.6', 'system')",
        "BEGIN",
        "BEGIN IMMEDIATE",
        "COMMIT",
        "SAVEPOINT s",
        "ANALYZE",
        "VACUUM",
    ],
    "several statements": ["SELECT 1; SELECT 2", "SELECT 1; DROP TABLE shop", "SELECT 1;; ATTACH 'x' AS y"],
    "time": [
        f"{ENDLESS} SELECT count(*) FROM n",
        f"{ENDLESS} SELECT max(i) FROM n WHERE i < 0",
        "SELECT count(*) FROM item a, item b, item c, item d, item e, item f, item g, item h, item i, item j, item k, item l, "
        "item m, item n, item o",
        f"{ENDLESS} SELECT 1 FROM n GROUP BY 1 HAVING count(*) < 0",
    ],
    "time or size": [
        "SELECT zeroblob(1000000000)",
        "SELECT randomblob(1000000000)",
        "SELECT printf('%.*c', 1000000000, 'x')",
        "SELECT hex(zeroblob(90000)) || hex(zeroblob(90000))",
        "SELECT replace(hex(zeroblob(40000)), '0', 'xxxxxxxxxx')",
        f"{ENDLESS} SELECT i FROM n",
        f"{ENDLESS} SELECT group_concat(i) FROM n",
        f"{ENDLESS} SELECT printf('%.*c', 90000, 'x') FROM n",
    ],
    "some limit": [
        f"{ENDLESS}, m(a) AS (SELECT printf('%.*c', 90000, i) FROM n) SELECT DISTINCT a FROM m ORDER BY a",
        f"{ENDLESS} SELECT i, hex(randomblob(40000)) FROM n ORDER BY 2",
        f"{ENDLESS} SELECT json_group_array(i) FROM n",
        "SELECT " + "(" * 5000 + "1" + ")" * 5000,
        "SELECT " + " + ".join(["1"] * 200_000),
        " UNION ALL ".join(["SELECT 1"] * 5000),
        "SELECT " + "printf('%.*c', 1000000000, 'x'), " * 3 + "1",
    ],
    "no such thing": [
        "REINDEX",
        "EXPLAIN DELETE FROM shop",
        "SELECT readfile('/etc/passwd')",
        "SELECT writefile('{side}', 'x')",
        "SELECT edit('x')",
        "\0",
    ],
}
QUERIES = [(kind, query) for kind, queries in HOSTILE.items() for query in queries]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    return make_database(folder / "shop.sqlite")


@pytest.fixture(scope="module")
def short():
    with QueryRunner(1, Limits(seconds=SECONDS, rows=1000, cell_bytes=100_000, heap_bytes=32 << 20)) as opened:
        yield opened


@pytest.mark.slow
def test_hostile_queries_have_no_effect(place, short):
    assert len(QUERIES) >= 60
    digest = hashlib.sha256(place.read_bytes()).hexdigest()
    changed = place.stat().st_mtime_ns
    filled = [
        (kind, query.replace("{side}", f"{place.parent}/side").replace("{folder}", str(place.parent)))
        for kind, query in QUERIES
    ]
    start = time.monotonic()
    # Queries share a worker with a harmless neighbour, which is served whatever happens to them.
    found = short.run([(place, [query, "SELECT count(*) FROM shop"]) for _, query in filled])
    seconds = time.monotonic() - start
    wrong = [
        (kind, query[:80], result.kind, result.error)
        for (kind, query), (result, _) in zip(filled, found, strict=True)
        if not result.error
        or (kind in ("refused", "several statements", "time") and result.kind != kind)
        or (kind == "time or size" and result.kind not in kind)
    ]
    assert not wrong
    assert [neighbour.rows for _, neighbour in found] == [((3,),)] * len(found)
    assert all(result.seconds < SECONDS + 1.0 for result, _ in found)
    assert seconds < 0.5 * len(QUERIES)
    assert hashlib.sha256(place.read_bytes()).hexdigest() == digest
    assert place.stat().st_mtime_ns == changed
    assert [path.name for path in place.parent.iterdir()] == ["shop.sqlite"]


def test_execution_repeats_itself(place, short):
    queries = ["SELECT * FROM item ORDER BY id", "SELECT nothing", "SELECT avg(price) FROM item"]
    one, two = short.run([(place, queries)] * 2)
    assert [(each.rows, each.error) for each in one] == [(each.rows, each.error) for each in two]


def test_a_crash_takes_no_neighbour_along(place, short, monkeypatch):
    """A worker that is killed is replaced, and the other queries of the call are run again."""
    worker = short._many._idle.get()
    short._many._idle.put(worker)
    if worker is not None:
        os.kill(worker._process.pid, signal.SIGKILL)
    ((first, second),) = short.run([(place, ["SELECT 1", "SELECT 2"])])
    assert (first.rows, second.rows) == (((1,),), ((2,),))


@pytest.mark.process
def test_no_process_is_left_when_the_parent_is_killed(place):
    script = (
        "import sys, threading, time\n"
        "from pathlib import Path\n"
        "from smallr.evals.isolation.queries import QueryRunner\n"
        "from smallr.evals.isolation.sqlite import Limits\n"
        "runner = QueryRunner(1, Limits(seconds=600))\n"
        f"job = (Path({str(place)!r}), [{ENDLESS + ' SELECT count(*) FROM n'!r}])\n"
        "threading.Thread(target=runner.run, args=([job],), daemon=True).start()\n"
        "while runner._many._idle.qsize() or not runner._many._threads._threads: time.sleep(0.01)\n"
        "time.sleep(1.0)\n"
        "print('running', flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"running\n"
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    threads = [path.read_text().split() for path in Path(f"/proc/{parent.pid}/task").glob("*/children")]
    workers = {int(pid) for pids in (children, *threads) for pid in pids}
    assert workers
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(_runs(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in workers)


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# Files that cannot be used


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        check_database(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_what_is_no_database(tmp_path):
    text, empty = tmp_path / "text.sqlite", tmp_path / "empty.sqlite"
    text.write_text("SELECT 1" * 50)
    empty.touch()
    assert "no SQLite 3 database, or it is encrypted" in refusal(text)
    assert "is empty" in refusal(empty)
    assert "cannot be read" in refusal(tmp_path / "nothing.sqlite")
    assert "cannot be read" in refusal(tmp_path)
    (tmp_path / "cut.sqlite").write_bytes(b"SQLite format 3\0")
    assert "no SQLite 3 database" in refusal(tmp_path / "cut.sqlite")


def test_a_database_without_tables_or_with_damage(tmp_path, runner):
    bare = make_database(tmp_path / "bare.sqlite", "CREATE TABLE t (a); DROP TABLE t;")
    with pytest.raises(UserError, match="has no tables"):
        runner.tables(bare)
    broken = make_database(tmp_path / "broken.sqlite")
    data = broken.read_bytes()
    broken.write_bytes(data[:100] + b"\xff" * (len(data) - 100))
    with pytest.raises(UserError, match=r"broken\.sqlite cannot be read"):
        runner.tables(broken)


def test_a_log_that_is_not_in_the_file_yet(tmp_path):
    path = tmp_path / "wal.sqlite"
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE t (a)")
    writer.commit()
    assert "wal.sqlite-wal" in refusal(path)
    assert "checkpoint" in refusal(path)
    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    check_database(path)
    writer.close()
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        check_database(path)
        with QueryRunner(1) as runner:
            assert runner.run([(path, ["SELECT count(*) FROM t"])])[0][0].rows == ((0,),)
    finally:
        tmp_path.chmod(0o755)
    assert [each.name for each in tmp_path.iterdir()] == ["wal.sqlite"]


def test_a_locked_database(tmp_path):
    path = make_database(tmp_path / "locked.sqlite")
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    try:
        assert "locked" in refusal(path)
    finally:
        writer.rollback()
        writer.close()
    check_database(path)
