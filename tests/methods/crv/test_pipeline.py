"""Whole runs: oracle agents in this process, a real server with faults, and a process that is killed."""

from __future__ import annotations

import dataclasses
import io
import json
import os
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
from datasets import Dataset, load_from_disk
from rich.console import Console

from smallr.core import files
from smallr.core.errors import UserError
from smallr.core.files import host_name
from smallr.core.stage_table import State, states
from smallr.core.stages import Stopped
from smallr.data import builtin
from smallr.data.builtin.reading import mistake, style
from smallr.data.sources import LoadedPart
from smallr.methods.crv import report as crv_report
from smallr.methods.crv.names import LABELS, ROLES
from smallr.methods.crv.oracle import Oracle, OracleOptions
from smallr.methods.crv.pipeline import default_folder, run_crv
from smallr.methods.crv.rows import FEATURES, TeacherRow
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


@pytest.fixture
def plots() -> None:
    """A test that uses this looks at plots."""


@pytest.fixture(autouse=True)
def _no_plots(request, monkeypatch) -> None:
    """Plots are two thirds of the time of a small run."""
    if "plots" not in request.fixturenames:
        monkeypatch.setattr(crv_report, "_plot", lambda *_: False)


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def run(config, folder: Path) -> dict:
    return run_crv(config, folder, quiet())


def test_oracle_agents_fit_every_rationale(questions, teacher, tmp_path, plots):
    source = write_rows(tmp_path / "rows", teacher, ("train", "test"))
    config = small(source, **{"data.splits": "train,test[:0%]", "recheck": True})
    with pytest.raises(UserError, match="holds no rows"):
        run(config, tmp_path / "none")
    config = small(source, recheck=True)
    report = run(config, tmp_path / "out")
    assert report["rows"]["verified"] == 40
    assert report["labels"] == Counter(row["fits"] for row in teacher if row["fits"]) + Counter(
        ["medium" if style(q.problem, row["rationale"]) == "fitted" else
         {"terse": "easy", "involved": "hard"}[style(q.problem, row["rationale"])]
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
        assert style(q.problem, row["rationale"]) == "fitted"
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
    expected = {"read": 9, "duplicates": 1, "contaminated": 1, "no_question": 1, "unreadable": 0, "without_gold": 1}
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


@pytest.mark.slow
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
        assert report["open_errors"][0].startswith("500: no")
        assert not (tmp_path / "out" / "result.json").exists()
        assert "1 rows got no reply and are in neither data set" in (tmp_path / "out" / "report.md").read_text()
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
    return [sys.executable, "-m", "smallr", "crv", "annotate", f"--out={out}", *flags]


@pytest.mark.process
def test_a_killed_run_goes_on_without_paying_twice_and_a_second_one_is_refused(teacher, tmp_path, monkeypatch):
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
        with pytest.raises(UserError, match=rf"process {process.pid} on {host_name()} works on this CRV run"):
            run(config, tmp_path / "out")
        journal = tmp_path / "out" / "journal.jsonl"
        lines = journal.read_text().splitlines() if journal.exists() else []
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=300)
        release.set()
        first["yes"] = False
        assert len(agents.paid) == 25
        assert 0 < len(lines) < 12
        with journal.open("a") as file:
            file.write('{"check": "0123abcd", "key": "half a li')  # as a kill in the middle of a write leaves it
        for name in ("verified", "failed"):  # and in the middle of a data set
            (tmp_path / "out" / f".{name}-x1").mkdir()
        report = run(config, tmp_path / "out")
    assert report["rows"]["verified"] == 12
    assert journal.read_text().splitlines()[: len(lines)] == lines
    assert max(Counter(agents.paid).values()) == 1, "no request was paid twice"
    assert len(agents.paid) == report["usage"]["requests"]
    ids = load_from_disk(tmp_path / "out" / "verified")["train"]["id"]
    assert len(set(ids)) == 12
    assert not list((tmp_path / "out").glob(".*"))


def test_a_signal_stops_a_run_and_it_goes_on(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    source = write_rows(tmp_path / "rows", teacher[:6])
    signalled, release = {"yes": False}, threading.Event()

    def interfere(handler: Handler, number: int) -> bool:
        if number < 12 or release.is_set():
            return False
        if not signalled["yes"]:
            signalled["yes"] = True
            wait_until(lambda: answers(tmp_path / "cache") == 12, "every reply that was paid for reaches the cache")
            os.kill(os.getpid(), signal.SIGTERM)
        release.wait(60)
        handler.close_connection = True
        return True

    agents = Agents(interfere)
    with serving(agents) as server:
        config = served(server.url, source, concurrency=2)
        with pytest.raises(Stopped, match=r"interrupted by SIGTERM\n\d rows are finished .* same command goes on"):
            run(config, tmp_path / "out")
        release.set()
        (line,) = states(tmp_path / "out")
        assert line.state is State.BEGUN
        assert run(config, tmp_path / "out")["rows"]["verified"] == 6
    assert max(Counter(agents.paid).values()) == 1
    (line,) = states(tmp_path / "out")
    assert (line.state, line.note) == (State.DONE, "6 pieces finished; the time is that since it last went on")


def test_a_fault_while_the_results_are_written_leaves_a_run_that_goes_on(teacher, tmp_path, monkeypatch):
    """Whatever file the fault is in, the next start writes what an undisturbed run writes, and asks nothing again."""
    source = write_rows(tmp_path / "rows", teacher[:4])
    config = small(source)
    run(config, tmp_path / "whole")
    asked = []
    monkeypatch.setattr(Oracle, "complete", counted(Oracle.complete, asked))
    replace, renames = os.replace, [0]
    for number in range(1, 7):  # run.json, two data sets, two reports, result.json

        def dying(old, new, number=number):
            renames[0] += 1
            if renames[0] == number:
                raise KeyboardInterrupt
            replace(old, new)

        renames[0] = 0
        out = tmp_path / f"out{number}"
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "replace", dying)
            with pytest.raises(KeyboardInterrupt):
                run(config, out)
        asked.clear()
        run(config, out)
        assert bool(asked) == (number == 1)
        assert (out / "report.md").read_text() == (tmp_path / "whole" / "report.md").read_text()
        for name in ("verified", "failed"):
            rows = [load_from_disk(folder / name)["train"].to_list() for folder in (out, tmp_path / "whole")]
            assert rows[0] == rows[1]
        assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


def counted(complete: Callable, asked: list) -> Callable:
    def call(self, requests, **options):
        asked.extend(requests)
        return complete(self, requests, **options)

    return call


def test_one_bad_row_does_not_take_the_others_with_it(teacher, tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    bad = [dict(row) for row in teacher[:6]]
    bad[2]["question"] += " \ud83d"
    rows.write_text("".join(json.dumps(row) + "\n" for row in bad))
    complete = Oracle.complete

    async def failing(self, requests, **options):
        if teacher[4]["question"] in requests[0].messages[0]["content"]:
            raise RuntimeError("a fault of this request")
        return await complete(self, requests, **options)

    loaded = LoadedPart(Dataset.from_list(teacher[:6]), 6, range(6))
    monkeypatch.setattr("smallr.methods.crv.teacher_rows.load_part", lambda *_: loaded)
    real = TeacherRow.encodable
    monkeypatch.setattr(
        TeacherRow,
        "encodable",
        lambda row: real(dataclasses.replace(row, question="?") if row.row == 2 else row),
    )
    with monkeypatch.context() as patch:
        patch.setattr(Oracle, "complete", failing)
        report = run(small(str(rows), max_errors=3), tmp_path / "out")
    assert (report["rows"]["verified"], report["rows"]["failed"], report["open"]) == (4, 1, 1)
    assert report["failures"] == {"not encodable": 1}
    assert report["open_errors"] == ["RuntimeError: a fault of this request"]
    report = run(small(str(rows), max_errors=3), tmp_path / "out")
    assert (report["rows"]["verified"], report["open"]) == (5, 0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: out.joinpath("run.json").write_bytes(b"[]"), "run.json is damaged: expected a JSON dict"),
        (lambda out: out.joinpath("run.json").write_bytes(b"\xff"), "run.json is damaged: byte 0 is not UTF-8"),
        (lambda out: change(out, lambda text: text.replace('"label": "', '"label": "x', 1)), "line 1: damaged"),
        (lambda out: change(out, lambda text: text.replace('"row": {', '"row": [', 1)), "line 1: damaged"),
        (lambda out: change(out, lambda text: "7\n" + text), "line 1: damaged"),
    ],
)
def test_damage_is_named_and_nothing_lost(damage, message, teacher, tmp_path):
    source = write_rows(tmp_path / "rows", teacher[:3])
    run(small(source), tmp_path / "out")
    damage(tmp_path / "out")
    (tmp_path / "out" / "result.json").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    with pytest.raises(UserError, match=message):
        run(small(source), tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before


def change(out: Path, edit: Callable[[str], str]) -> None:
    path = out / "journal.jsonl"
    path.write_text(edit(path.read_text()))


def answers(cache: Path) -> int:
    with sqlite3.connect(cache / "completions" / "results.db") as database:
        return database.execute("SELECT count(*) FROM completions").fetchone()[0]


def wait_until(holds: Callable[[], bool], what: str) -> None:
    for _ in range(2000):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail(what)
