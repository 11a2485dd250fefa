"""Several processes tokenise as one does: the same examples, the same report, whatever happens to a process."""

from __future__ import annotations

import dataclasses
import sys

import datasets
import numpy as np
import pytest

from smallr.data import parts
from smallr.data import token_set as token_set_module
from smallr.data.errors import DataError
from smallr.data.tokenize import TokenizeOptions, tokenize
from tests.data.conftest import TOY
from tests.data.toy_tokenizer import CHATML, build

# The template refuses the question "odd", and strips what it is given: two completions may come to be equal.
TEMPLATE = "{% if messages[0]['content'] == 'odd' %}{{ raise_exception('odd') }}{% endif %}" + CHATML.replace(
    "message['content']", "message['content'] | trim"
)
TOKENIZER = build(template=TEMPLATE)
FIELDS = ("tokens", "roles", "starts", "prefix_lengths", "completion_lengths", "num_scored", "rows")
# A worker that is killed when it is about to write its second part: the rows of that part are lost with it.
KILLED = """
import os, signal
from smallr.data import token_set, tokenize, tokenize_worker
written = []
def write(*args):
    written.append(args)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return token_set.write(*args)
tokenize.write = write
tokenize_worker.main()
"""


def preference(n):
    row = {"prompt": f"{n} apples?", "chosen": f"{n} yes", "rejected": "no", "beta": n / 7 if n % 3 else None}
    if n % 10 == 3:
        row |= {"prompt": ""}  # dropped when read
    if n % 10 == 5:
        row |= {"rejected": row["chosen"] + (" " if n % 20 == 5 else "")}  # dropped when tokenised, or when read
    if n % 17 == 15:
        row |= {"prompt": "odd"}  # dropped when rendered
    if n % 29 == 25:
        row |= {"chosen": "9" * (90 + n % 5)}  # too long; the first stands before the first that is refused
    return row


def sft(n):
    messages = [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "" if n % 9 == 4 else f"{n}"}]
    if n % 5 == 0:
        messages = [{"role": "system", "content": "odd" if n % 10 else "Count."}, *messages]
    return {"messages": messages[: 1 if n % 11 == 8 else None]}


def rationale(n):
    return {"question": f"{n}?", "answer": "" if n % 7 == 2 else f"{n}", "rationale": None if n % 4 == 1 else "x" * n}


MAKERS = {"preference": preference, "sft": sft, "rationale": rationale}


def rows_of(kind, count=160):
    rows = datasets.Dataset.from_list([MAKERS[kind](n) for n in range(count)])
    # Not the rows as they lie in memory: an indices mapping.
    return rows.select([*range(count // 3, count), *range(count // 3)])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(rows, kind, workers)`: parts of ten rows for that many processes; one: in this process."""

    def run(rows, kind, workers, tokenizer=TOKENIZER, **options):
        monkeypatch.setattr(parts, "LEAST_ROWS", 0 if workers > 1 else 10**9)
        monkeypatch.setattr(parts, "ROWS_PER_WORKER", 10)
        monkeypatch.setattr(parts, "_MOST_ROWS", 10)
        monkeypatch.setattr(parts, "_PARTS_PER_WORKER", 1)
        monkeypatch.setattr(parts.os, "sched_getaffinity", lambda _: set(range(workers)))
        options = TokenizeOptions(kind, 100, chat=True, **options)
        return tokenize(rows, tokenizer, options, source="rows", cache=tmp_path / f"{workers} workers")

    return run


def assert_same(several, one):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(several, name), getattr(one, name), strict=True, err_msg=name)
    assert several.columns.keys() == one.columns.keys()
    for name, values in one.columns.items():
        np.testing.assert_array_equal(several.columns[name], values, strict=True)
    assert several.fingerprint == one.fingerprint
    assert several.report == one.report
    assert str(several.report) == str(one.report)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_two_processes_tokenise_as_one_does(run, kind, monkeypatch, tmp_path, caplog):
    rows = rows_of(kind)
    asked = []
    send = parts._Worker.send
    monkeypatch.setattr(parts._Worker, "send", lambda *args: (asked.append((args[0], args[3])), send(*args)))
    one, several = run(rows, kind, 1), run(rows, kind, 2)
    assert_same(several, one)
    assert several.report.total == 160 == one.report.kept + sum(tally.count for tally in one.report.dropped.values())
    assert [part for _, part in asked] == [range(start, start + 10) for start in range(0, 160, 10)]
    assert len({worker for worker, _ in asked}) == 2
    assert not caplog.records
    for folder in tmp_path.iterdir():  # nothing else is left behind, and the cache's key is the same
        (entry,) = folder.iterdir()
        assert entry.name == next((tmp_path / "1 workers").iterdir()).name
    reasons = {
        "preference": [
            "chosen equal to rejected",
            "the chat template refuses the conversation: odd",
            "empty prompt",
            "longer than 100 tokens",
        ],
        "sft": ["the chat template refuses the conversation: odd", "empty assistant turn", "no assistant turn"],
        "rationale": ["empty answer", "longer than 100 tokens"],
    }[kind]
    assert set(one.report.dropped) == set(reasons)
    assert all(tally.rows == sorted(tally.rows) for tally in several.report.dropped.values())
    assert set(several.report.notes) == ({"no rationale: answer loss only"} if kind == "rationale" else set())


@pytest.mark.slow
def test_a_killed_process_loses_no_row(run, monkeypatch, caplog):
    rows = rows_of("preference", 100)
    one = run(rows, "preference", 1)
    monkeypatch.setattr(parts, "_COMMAND", ("-P", "-c", KILLED))
    several = run(rows, "preference", 2)
    assert_same(several, one)
    messages = [record.getMessage() for record in caplog.records]
    assert sum("was killed by SIGKILL (out of memory?); rows" in message for message in messages) == 2
    # Two parts each were taken by the two processes, of ten.
    assert messages[-1] == "no process that tokenises is left; 60 rows remain for this one"


def test_a_process_that_does_not_start_is_named(run, monkeypatch, caplog):
    rows = rows_of("rationale", 40)
    monkeypatch.setattr(parts, "_COMMAND", ("-c", "raise SystemExit('no room')"))
    assert_same(run(rows, "rationale", 2), run(rows, "rationale", 1))
    assert "a process that tokenises ended with status 1 (no room); rows 0 to 9 are tokenised again" in caplog.text
    monkeypatch.setattr(parts.sys, "executable", sys.executable + "-that-is-not-there")
    caplog.clear()
    changed = rows.select(range(1, 40))
    assert_same(run(changed, "rationale", 2), run(changed, "rationale", 1))
    assert "no more than 0 processes that tokenise could be started" in caplog.text


@pytest.mark.slow
def test_the_first_mistake_is_the_error(run):
    rows = [preference(n) for n in range(80)]
    rows[37]["beta"] = rows[72]["beta"] = -1.0
    rows = datasets.Dataset.from_list(rows)
    with pytest.raises(DataError) as several:
        run(rows, "preference", 2)
    with pytest.raises(DataError) as one:
        run(rows, "preference", 1)
    assert "rows, row 37, column 'beta'" in str(one.value)
    assert str(several.value) == str(one.value)


def test_no_row_left_in_any_part(run, monkeypatch):
    rows = datasets.Dataset.from_list([{"question": "q", "answer": " ", "rationale": "r"}] * 40)
    # Processes that end at once: the parts are still parts.
    monkeypatch.setattr(parts, "_COMMAND", ("-c", ""))
    with pytest.raises(DataError, match=r"no row is left to train on\nrows: 40 rows, 0 kept; no tokens") as error:
        run(rows, "rationale", 2)
    assert "dropped, empty answer: 40 (rows 0, 1, 2, 3, 4, …)" in str(error.value)


def test_number_of_processes(monkeypatch):
    least = parts.LEAST_ROWS
    rows = datasets.Dataset.from_dict({"a": range(least)})
    monkeypatch.delenv("SMALLR_WORKERS", raising=False)
    monkeypatch.setattr(parts.os, "sched_getaffinity", lambda _: set(range(3)))
    assert parts.num_workers(rows) == 3
    assert parts.num_workers(rows.select(range(least - 1))) == 1
    assert parts.num_workers(rows.select([])) == 1
    monkeypatch.setattr(parts, "ROWS_PER_WORKER", least // 2)
    assert parts.num_workers(rows) == 2
    monkeypatch.setattr(parts, "ROWS_PER_WORKER", 1)
    assert parts.num_workers(rows.with_transform(lambda batch: batch)) == 1
    monkeypatch.setenv("SMALLR_WORKERS", "2")
    assert parts.num_workers(rows) == 2
    monkeypatch.setenv("SMALLR_WORKERS", "0")
    assert parts.num_workers(rows) == 1
    monkeypatch.setenv("SMALLR_WORKERS", "many")
    with pytest.raises(DataError, match="SMALLR_WORKERS must be a number of processes, found 'many'"):
        parts.num_workers(rows)
    monkeypatch.delenv("SMALLR_WORKERS")
    monkeypatch.setattr(parts.os, "sched_getaffinity", lambda _: set(range(1000)))
    assert parts.num_workers(rows) == parts.MOST_WORKERS


def test_unpaired_rows_stay_here(run, monkeypatch):
    rows = [{"prompt": f"{n}?", "completion": f"{n}", "label": n % 2 == 0} for n in range(40)]
    monkeypatch.setattr(parts, "_Worker", None)
    assert len(run(datasets.Dataset.from_list(rows), "unpaired", 2)) == 40


def test_a_tokenizer_that_loads_differently_stays_here(run, monkeypatch, caplog):
    rows = rows_of("rationale", 40)
    one = run(rows, "rationale", 1)
    monkeypatch.setattr(parts, "_Worker", None)
    monkeypatch.setattr(parts, "load_tokenizer", lambda _: TOY)
    assert_same(run(rows, "rationale", 2), one)
    assert "changes when it is saved and loaded; tokenising in one process" in caplog.text


def test_those_who_wait_find_what_was_made(run, monkeypatch, tmp_path):
    """Another process made the entry between this one's look at the cache and its turn."""
    rows = rows_of("rationale", 40)
    one = run(rows, "rationale", 1)
    (tmp_path / "1 workers").rename(tmp_path / "made meanwhile")

    class Turn:
        def __enter__(self):
            (tmp_path / "made meanwhile").rename(tmp_path / "2 workers")
            return True

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("smallr.data.tokenize.turn", Turn)
    monkeypatch.setattr(parts, "_Worker", None)
    assert_same(run(rows, "rationale", 2), one)


def test_one_turn_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(parts.tempfile, "gettempdir", lambda: str(tmp_path))
    asked = []
    flock = parts.fcntl.flock

    def watched(file, how):
        asked.append(how)
        if how & parts.fcntl.LOCK_NB:
            return flock(file, how)

    monkeypatch.setattr(parts.fcntl, "flock", watched)
    with parts.turn() as first, parts.turn() as second:
        assert (first, second) == (False, True)
        assert asked[-1] == parts.fcntl.LOCK_EX  # the second waits without a limit
    with parts.turn() as again:
        assert not again


def test_merged_parts_without_columns_are_those_of_one_write(tmp_path, run):
    """SFT rows have no columns: an array of no rows, which must keep its shape."""
    one = run(rows_of("sft", 40), "sft", 1)
    folder = next((tmp_path / "1 workers").iterdir())
    token_set_module.merge(tmp_path / "merged", [folder], dataclasses.replace(one.report))
    assert_same(token_set_module.TokenSet(tmp_path / "merged"), one)
