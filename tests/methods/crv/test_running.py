"""Whole runs: oracle agents in this process, a real server with faults, and a process that is killed."""

from __future__ import annotations

import io
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import load_from_disk
from rich.console import Console

from smallr.core.errors import UserError
from smallr.data import builtin
from smallr.data.builtin.reading import manner, mistake
from smallr.methods.crv.oracle import Oracle, OracleOptions
from smallr.methods.crv.rows import FEATURES, LABELS, ROLES
from smallr.methods.crv.running import Stopped, default_folder, run_crv
from smallr.sampling.requests import Request, SamplingParams
from tests.data.test_arithmetic import boxed
from tests.language.faulty import Body, Handler, asked, error, reply, serving
from tests.methods.crv.fakes import small, write_rows
from tests.runs import ROOT, environment


@pytest.fixture(scope="module")
def questions():
    return builtin.make_questions(seed=9, train=40, test=10)


@pytest.fixture
def teacher(questions, tmp_path) -> list[dict]:
    return list(builtin.teacher_rows(questions["train"], "train"))


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def run(config, folder: Path) -> dict:
    return run_crv(config, folder, quiet())


def test_oracle_agents_fit_every_rationale(questions, teacher, tmp_path):
    source = write_rows(tmp_path / "rows", teacher, ("train", "test"))
    config = small(source, **{"data.splits": "train,test[:0%]", "recheck": True})
    with pytest.raises(UserError, match="holds no rows"):
        run(config, tmp_path / "none")
    config = small(source, recheck=True)
    report = run(config, tmp_path / "out")
    assert report["rows"]["verified"] == 40
    assert report["labels"] == Counter(row["fits"] for row in teacher if row["fits"]) + Counter(
        ["medium" if manner(q.problem, row["rationale"]) == "fitted" else
         {"terse": "easy", "involved": "hard"}[manner(q.problem, row["rationale"])]
         for q, row in zip(questions["train"], teacher, strict=True) if row["slip"]]
    )  # fmt: skip
    assert report["relabels"] == {"easy": 0, "medium": 40, "hard": 0}
    rows = load_from_disk(tmp_path / "out" / "verified")["train"].to_list()
    assert load_from_disk(tmp_path / "out" / "verified")["train"].features == FEATURES
    assert len(load_from_disk(tmp_path / "out" / "failed")["train"]) == 0
    for q, row, given in zip(questions["train"], rows, teacher, strict=True):
        assert row["question"] == given["question"]
        assert row["teacher_rationale"] == given["rationale"]
        assert row["original_correct"] == (given["slip"] == "")
        assert not mistake(q.problem, row["rationale"])
        assert boxed(row["rationale"]) == q.answer
        assert manner(q.problem, row["rationale"]) == "fitted"
        assert len(row["incorrect"]) == 2
        for wrong in row["incorrect"]:
            assert boxed(wrong["rationale"]) == int(wrong["answer"]) != q.answer
    sources = Counter(wrong["source"] for row in rows for wrong in row["incorrect"])
    assert sources["teacher"] == 4
    assert sources == Counter({key: count for key, count in report["incorrect"].items() if count})
    assert report["usage"]["requests"] == sum(row["requests"] for row in rows)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| verified | 40 |" in text
    assert rows[0]["rationale"].splitlines()[0] in text
    assert (tmp_path / "out" / "lengths.png").stat().st_size > 5000
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_errors_of_the_oracle_show_in_the_counts(teacher, tmp_path):
    source = write_rows(tmp_path / "rows", teacher)
    options = {"max_retries": 1, "incorrect.count": 0}
    wrong = run(small(source, "oracle:arithmetic?rethink_error=1", **options), tmp_path / "a")
    rewritten = sum(wrong["labels"][label] for label in ("easy", "hard"))
    assert wrong["failures"]["not verified: wrong answer"] >= rewritten
    assert wrong["retries"] >= rewritten
    strict = run(small(source, "oracle:arithmetic?verify_error=1", **options), tmp_path / "b")
    assert strict["rows"]["verified"] == 0
    right = run(small(source, "oracle:arithmetic", **options, recheck=True), tmp_path / "c")
    blind = run(small(source, "oracle:arithmetic?critic_error=1", **options), tmp_path / "d")
    assert all(blind["labels"][label] != right["labels"][label] for label in LABELS)
    # Critics may differ from the other agents.
    mixed = small(source, **options, **{"agents.critic.model": "oracle:arithmetic?critic_error=1"})
    assert run(mixed, tmp_path / "e")["labels"] == blind["labels"]
    rows = load_from_disk(tmp_path / "e" / "verified")["train"]
    assert rows["agents"][0] == {role: "oracle:arithmetic" for role in ROLES} | {
        "critic": "oracle:arithmetic?critic_error=1",
        "student": "oracle:arithmetic",
    }


def test_bad_rows_are_counted(teacher, tmp_path):
    good = teacher[:4]
    rows = [
        *good,
        {**good[0], "question": good[0]["question"].upper(), "rationale": "again"},
        {**good[1], "question": "  "},
        {**teacher[5], "rationale": None},
        {**teacher[6], "answer": None},
        {**teacher[7], "question": "What is love?", "answer": "42"},
    ]
    held = [{"problem": good[3]["question"].replace(" ", "  ")}]
    config = small(
        write_rows(tmp_path / "rows", rows),
        **{"data.holdout": write_rows(tmp_path / "held", [{"question": held[0]["problem"]}])},
    )
    report = run(config, tmp_path / "out")
    expected = {"read": 9, "duplicates": 1, "contaminated": 1, "no_question": 1, "without_gold": 1}
    assert report["rows"] == {**expected, "finished": 6, "verified": 4, "failed": 2}
    assert report["failures"] == {"empty rationale": 1, "critic: request refused": 1}
    assert report["contaminated"] == [["train", 3, good[3]["question"]]]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "1 rows have no gold answer: the verifier alone decided" in text
    assert good[3]["question"][:60] in text
    failed = load_from_disk(tmp_path / "out" / "failed")["train"]
    assert sorted(failed["reason"]) == ["critic: request refused", "empty rationale"]
    verified = load_from_disk(tmp_path / "out" / "verified")["train"]
    assert Counter(verified["verified_by"]) == {"rule and agent": 3, "agent": 1}


def test_columns_are_mapped_and_mistakes_named(teacher, tmp_path):
    rows = [
        {"q": row["question"], "gold": float(row["answer"]), "why": row["rationale"], "source": "mine"}
        for row in teacher[:2]
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"data.columns.question": "q", "data.columns.answer": "gold", "data.columns.rationale": "why"}
    run(small(str(path), **columns), tmp_path / "out")
    (first, _) = load_from_disk(tmp_path / "out" / "verified")["train"].to_list()
    assert (first["answer"], first["source"]) == (teacher[0]["answer"], "mine")
    for changes, message in (
        ({**columns, "data.columns.rationale": "wy"}, "no column 'wy' .*did you mean 'why'"),
        ({**columns, "data.columns.question": "question"}, "no column 'question'.*config.data.columns.question=NAME"),
        ({"check": "numbers"}, "config.check = 'numbers' .*did you mean 'number'"),
        ({"incorrect.sources": "student,injector"}, "did you mean 'injected'"),
        ({"concurrency": 0}, "config.concurrency = 0 must be at least 1"),
        ({"data.splits": "train,train[:1]"}, "name each split once"),
        ({"agents.critic.temperature": -1.0, **columns}, "config.agents.critic: sampling: temperature"),
    ):
        with pytest.raises(UserError, match=message):
            run(small(str(path), **changes), tmp_path / "other")
    with pytest.raises(UserError, match=r"config.model is empty: .*--config.model="):
        run(small(str(path), ""), tmp_path / "other")


def test_a_folder_of_another_run_is_refused_and_rows_are_added(teacher, tmp_path):
    source = write_rows(tmp_path / "rows", teacher)
    run(small(source, **{"data.splits": "train[:3]"}), tmp_path / "out")
    before = (tmp_path / "out" / "journal.jsonl").read_text().splitlines()
    with pytest.raises(UserError, match=r"holds another CRV run \(max_retries: 3 before, 1 now\)"):
        run(small(source, max_retries=1), tmp_path / "out")
    report = run(small(source, **{"data.splits": "train[:5]", "concurrency": 2}), tmp_path / "out")
    after = (tmp_path / "out" / "journal.jsonl").read_text().splitlines()
    assert after[:3] == before
    assert (len(after), report["rows"]["verified"]) == (5, 5)
    assert default_folder(small(source)) == default_folder(small(source, concurrency=3))
    assert default_folder(small(source)) != default_folder(small(source, seed=1))


# A real server, behind which the oracle plays all agents


class Agents:
    """What a server with the oracle behind it does; `paid` are the prompts that were answered."""

    def __init__(self, interfere: Callable[[Handler, int], bool] = lambda handler, number: False):
        self.paid: list[tuple[str, int]] = []
        self._interfere = interfere
        self._models = {role: Oracle(role, OracleOptions()) for role in ROLES}

    def __call__(self, handler: Handler, number: int, body: Body) -> None:
        if self._interfere(handler, number):
            return
        prompt = asked(body)
        opening = {"You judge": "critic", "A small": "rethinker", "Check the": "verifier", "The rationale": "injector"}
        role = next((role for start, role in opening.items() if prompt.startswith(start)), "student")
        request = Request(
            messages=tuple(body["messages"]), params=SamplingParams(n=body.get("n", 1), seed=body["seed"])
        )
        (result,) = self._models[role].complete_sync([request])
        good = reply("", body.get("n", 1))
        for choice, sample in zip(good["choices"], result.samples, strict=True):
            choice["message"]["content"] = sample.text
        with handler.owner.lock:
            self.paid.append((prompt, body["seed"]))
        handler.send(200, good)


def served(url: str, source: str, **changes) -> object:
    return small(source, f"{url}#m", **{"server.max_retries": 0, "max_errors": 3, "concurrency": 4, **changes})


def test_prices_and_tokens_are_counted(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    source = write_rows(tmp_path / "rows", teacher[:4])
    agents = Agents()
    with serving(agents) as server:
        config = served(server.url, source, **{"prices.prompt": 2.0, "prices.completion": 100.0})
        report = run(config, tmp_path / "out")
        samples = sum(body.get("n", 1) for body in server.bodies)
        again = run(config, tmp_path / "again")
    assert report["usage"]["requests"] == len(agents.paid) == len(server.bodies)
    assert report["usage"]["cost"] == pytest.approx((3 * len(server.bodies) * 2.0 + 2 * samples * 100.0) / 1e6)
    assert again["usage"]["cached"] == again["usage"]["requests"] == report["usage"]["requests"]
    assert again["rows"] == report["rows"]


@pytest.mark.parametrize("fault", ["down", "quota"])
def test_an_endpoint_that_fails_in_the_middle_loses_nothing(fault, teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    source = write_rows(tmp_path / "rows", teacher[:12])
    working, failures = {"yes": False}, threading.Semaphore(0)

    def interfere(handler: Handler, number: int) -> bool:
        if working["yes"] or number < 24:
            return False
        if number == 24:  # a reply that comes when others have failed and the run is at its end
            assert all(failures.acquire(timeout=60) for _ in range(3))
            time.sleep(0.5)
            return False
        failures.release()
        if fault == "down":
            handler.drop()
        else:
            handler.send(429, error("You exceeded your current quota", code="insufficient_quota"))
        return True

    agents = Agents(interfere)
    with serving(agents) as server:
        config = served(server.url, source)
        with pytest.raises(Stopped) as stop:
            run(config, tmp_path / "out")
        done = len((tmp_path / "out" / "journal.jsonl").read_text().splitlines())
        assert 0 < done < 12
        assert f"{done} rows are finished" in str(stop.value)
        assert "3 requests in a row got no reply" in str(stop.value)
        assert ("quota" if fault == "quota" else "connection was lost") in str(stop.value)
        assert not (tmp_path / "out" / "verified").exists()
        assert len(agents.paid) == 25
        working["yes"] = True
        report = run(config, tmp_path / "out")
    assert report["rows"]["verified"] == 12
    assert max(Counter(agents.paid).values()) == 1
    assert len(agents.paid) == report["usage"]["requests"]


def test_a_request_that_is_never_answered_leaves_its_row_open(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    source = write_rows(tmp_path / "rows", teacher[:5])
    working, question = {"yes": False}, teacher[2]["question"]

    class Choosy(Agents):
        def __call__(self, handler: Handler, number: int, body: Body) -> None:
            if question in asked(body) and not working["yes"]:
                handler.send(500, error("no"))
            else:
                super().__call__(handler, number, body)

    agents = Choosy()
    with serving(agents) as server:
        config = served(server.url, source, max_errors=2, concurrency=1)
        report = run(config, tmp_path / "out")
        assert (report["open"], report["rows"]["verified"], report["rows"]["failed"]) == (1, 4, 0)
        assert "1 rows got no reply and are in neither data set" in (tmp_path / "out" / "report.md").read_text()
        command = line(config, tmp_path / "out")
        left = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False
        )
        assert left.returncode == 1
        assert "1 rows got no reply (500: no" in left.stderr
        working["yes"] = True
        assert run(config, tmp_path / "out")["rows"]["verified"] == 5
    assert max(Counter(agents.paid).values()) == 1


def line(config, out: Path) -> list[str]:
    """The command of a run with the config's settings."""
    changed = {
        "data.source": config.data.source,
        "data.splits": config.data.splits,
        "model": config.model,
        "concurrency": config.concurrency,
        "max_errors": config.max_errors,
        "server.max_retries": config.server.max_retries,
    }
    flags = [f"--config.{name}={value}" for name, value in changed.items()]
    return [sys.executable, "-m", "smallr.methods.crv", "--config=configs/crv/annotate.py", f"--out={out}", *flags]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_without_paying_twice(number, teacher, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("SMALLR_CACHE", str(cache))
    source = write_rows(tmp_path / "rows", teacher[:12])
    held, release = threading.Event(), threading.Event()
    first = {"yes": True}

    def interfere(handler: Handler, number: int) -> bool:
        """From request 25 on nothing is answered until the process is dead."""
        if not first["yes"] or number < 25:
            return False
        held.set()
        release.wait(300)
        handler.close_connection = True
        return True

    agents = Agents(interfere)
    with serving(agents) as server:
        config = served(server.url, source)
        process = subprocess.Popen(
            line(config, tmp_path / "out"),
            cwd=ROOT,
            env=environment(SMALLR_CACHE=str(cache)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert held.wait(300), process.communicate(timeout=5)
        wait_until(lambda: answers(cache) == 25, "every reply that was paid for reaches the cache")
        journal = tmp_path / "out" / "journal.jsonl"
        lines = journal.read_text().splitlines() if journal.exists() else []
        process.send_signal(number)
        _, said = process.communicate(timeout=300)
        assert process.returncode == (1 if number == signal.SIGTERM else -signal.SIGKILL)
        if number == signal.SIGTERM:
            assert "interrupted by SIGTERM" in said
            assert "The same command goes on from there" in said
        release.set()
        first["yes"] = False
        assert len(agents.paid) == 25
        assert 0 < len(lines) < 12
        with journal.open("a") as file:
            file.write('{"key": "half a li')  # as a kill in the middle of a write leaves it
        report = run(config, tmp_path / "out")
    assert report["rows"]["verified"] == 12
    assert journal.read_text().splitlines()[: len(lines)] == lines
    assert max(Counter(agents.paid).values()) == 1, "no request was paid twice"
    assert len(agents.paid) == report["usage"]["requests"]
    ids = load_from_disk(tmp_path / "out" / "verified")["train"]["id"]
    assert len(set(ids)) == 12


def answers(cache: Path) -> int:
    with sqlite3.connect(cache / "completions" / "results.db") as database:
        return database.execute("SELECT count(*) FROM results").fetchone()[0]


def wait_until(holds: Callable[[], bool], what: str) -> None:
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail(what)
