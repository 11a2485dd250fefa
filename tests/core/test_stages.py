"""Stages: what is kept, what goes on, who does what, and what a fault at every step leaves."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from ml_collections import ConfigDict

from smallr.core import files
from smallr.core.errors import UserError
from smallr.core.locks import FolderLock
from smallr.core.stage_values import flat, identity_of
from smallr.core.stages import Stage, StageFolder, Stages, Stopped, part

ROOT = Path(__file__).parents[2]


# A method: named stages with functions


def rows_of(count: int, seed: int) -> list[dict]:
    return [{"x": seed + i, "text": "ü\n"} for i in range(count)]


def useful(rows: list[dict], limit: int) -> dict:
    kept = [row for row in rows if row["x"] < limit]
    return {"rows": kept, "counts": {"in": len(rows), "kept": np.int64(len(kept))}}


def trained(folder: Path, pairs: dict, start: str) -> Path:
    (folder / "weights").write_text(f"{start} {len(pairs['rows'])}")
    return folder / "weights"


def best(tuned: list[Path]) -> str:
    return max(path.read_text() for path in tuned)


def method(out: Path, limit: int = 3, calls: list | None = None) -> str:
    """Six stages, of which the first does not depend on the limit."""

    def counted(function, name):
        @functools.wraps(function)
        def call(*inputs):
            if calls is not None:
                calls.append(name)
            return function(*inputs)

        return call

    job = Stages(out)
    rows = job.make("rows", counted(rows_of, "rows"), 5, 1)
    pairs = job.make("pairs", counted(useful, "pairs"), rows, limit)
    tuned = [job.do(f"tuned_{s}", counted(trained, f"tuned_{s}"), pairs, f"start{s}") for s in range(3)]
    chosen = job.make("choice", counted(best, "choice"), tuned)
    job.run()
    return job.value(chosen)


def test_a_method_does_each_stage_once(tmp_path, capsys):
    calls: list[str] = []
    assert method(tmp_path, calls=calls) == "start2 2"
    assert calls == ["rows", "pairs", "tuned_0", "tuned_1", "tuned_2", "choice"]
    assert "6 stages: 6 waiting" in capsys.readouterr().out
    assert method(tmp_path, calls=calls) == "start2 2"
    assert len(calls) == 6
    assert "stages" not in capsys.readouterr().out, "nothing is left to do"
    # What does not depend on a change stays.
    assert method(tmp_path, limit=5, calls=calls) == "start2 4"
    assert calls[6:] == ["pairs", "tuned_0", "tuned_1", "tuned_2", "choice"]
    result = json.loads(next(tmp_path.glob("pairs-*/result.json")).read_text())
    assert result["value"]["mapping"]["rows"]["rows"] == "rows.jsonl"


@pytest.mark.parametrize("number", range(1, 14))
def test_a_fault_at_any_write_leaves_a_job_that_goes_on_to_the_same_result(number, tmp_path, monkeypatch):
    """There are thirteen writes of whole files; a process that dies at one leaves its temporary file."""
    count, write = [0], files.whole_file

    @files.contextlib.contextmanager
    def dying(path, mode="w"):
        count[0] += 1
        if count[0] == number:
            (path.parent / f".{path.name}-{files.host_name()}-{2**22 + 1}-01234567").write_text("half")
            raise KeyboardInterrupt
        with write(path, mode) as file:
            yield file

    with monkeypatch.context() as patch:
        patch.setattr(files, "whole_file", dying)
        with pytest.raises(KeyboardInterrupt):
            method(tmp_path)
    assert method(tmp_path) == "start2 2"
    left = [path for path in tmp_path.rglob(".*") if path.parent != tmp_path]
    assert not left


def test_values_are_checked_when_they_are_read(tmp_path):
    method(tmp_path)
    (rows,) = tmp_path.glob("rows-*/rows.jsonl")
    rows.write_bytes(rows.read_bytes().replace(b"1", b"2", 1))
    (pairs,) = tmp_path.glob("pairs-*")
    (pairs / "result.json").unlink()
    with pytest.raises(
        UserError, match=r"rows.jsonl is not as it was written: delete .*rows-\w+, and it is made again"
    ):
        method(tmp_path)
    (rows.parent / "result.json").write_text("[]")
    with pytest.raises(UserError, match=r"result.json cannot be read .*expected a JSON dict, found list.*: delete it"):
        method(tmp_path)
    job = Stages(tmp_path / "new")
    with pytest.raises(UserError, match="stage a is not finished"):
        job.value(job.make("a", best, []))
    with pytest.raises(ValueError, match="two stages are called 'a'"):
        job.make("a", best, [1])
    with pytest.raises(ValueError, match="'a/b' cannot be a stage's name"):
        job.make("a/b", best, [])


@dataclasses.dataclass
class Settings:
    rate: float = 0.1


def test_identities_of_inputs(tmp_path):
    file, folder = tmp_path / "a.txt", tmp_path / "folder"
    file.write_text("one")
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "x").write_text("x")
    inputs = [
        None, True, 1, 1.0, "1", [1, 2], {"a": 1}, file, folder, Settings(), Settings(0.2), ConfigDict({"a": {"b": 1}}),
        useful, functools.partial(useful, limit=1), np.arange(3), np.arange(3.0), Dataset.from_list([{"a": 1}]),
    ]  # fmt: skip
    found = [json.dumps(identity_of(each)) for each in inputs]
    assert len(set(found)) == len(inputs)
    assert found == [json.dumps(identity_of(each)) for each in inputs]
    assert identity_of(Dataset.from_list([{"a": 1}])) == identity_of([{"a": 1}])
    before = identity_of([file, folder])
    (folder / "deep" / "x").write_text("y")
    assert identity_of([file, folder]) != before
    long = [{"x": i} for i in range(2000)]
    assert list(identity_of(long)) == ["sha256"]
    assert identity_of(long) != identity_of(long[::-1])
    with pytest.raises(TypeError, match="type object cannot be told from another"):
        identity_of([object()])
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


# A grid: many stages with one function


KILLED = """
import sys, time
from pathlib import Path
from smallr.core.stages import Stage, Stages
out = Path(sys.argv[1])
plan = [Stage(f"run{i}", {"seed": i}) for i in range(4)]
def work(stage, folder, needs):
    with (out / "calls").open("a") as calls:
        calls.write(stage.name + "\\n")
    state = folder / "state"
    begun = state.exists()
    state.write_text("half")
    if stage.name == "run2" and not begun:
        time.sleep(60)
    return {"value": stage.settings["seed"] * 2, "resumed": begun}
print(Stages(out).run(plan, work))
"""


@pytest.mark.process
def test_a_killed_grid_goes_on_and_a_second_process_is_refused(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("run2-*/state")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"process {first.pid} on {files.host_name()} works on this stage" in second.stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert len(list(tmp_path.glob("*/result.json"))) == 2

    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert (tmp_path / "calls").read_text().split() == ["run0", "run1", "run2", "run2", "run3"]
    assert "'value': 6" in done.stdout
    plan = [Stage(f"run{i}", {"seed": i}) for i in range(4)]
    rows = Stages(tmp_path).rows(plan)
    assert [row["value"] for row in rows] == [0, 2, 4, 6]
    assert [row["resumed"] for row in rows] == [0, 0, 1, 0]


def test_other_settings_are_another_stage_also_of_needed_ones(tmp_path):
    def base(rate):
        return Stage("base", {"rate": rate})

    def work(stage, folder, needs):
        assert [path.name.partition("-")[0] for path in needs] == ["base" for _ in stage.needs]
        return {"x": stage.settings.get("rate", 0)}

    one, two = (Stage("top", {"beta": 1}, (base(rate),)) for rate in (0.1, 0.2))
    grid = Stages(tmp_path)
    grid.run([base(0.1), one], work)
    assert grid.folder(one) != grid.folder(two)
    assert grid.value(one) == {"x": 0}
    assert Stages(tmp_path).result(two) is None
    assert Stage("other", {"beta": 1}, (base(0.1),)).digest == one.digest


def test_what_cannot_be_done_is_refused(tmp_path):
    first, second = Stage("first", {"a": 1}), Stage("second", {"a": 2}, (Stage("first", {"a": 1}),))
    with pytest.raises(UserError, match="second needs first"):
        Stages(tmp_path).run([second, first], lambda *_: {})
    with pytest.raises(UserError, match="same settings"):
        Stages(tmp_path).run([first, Stage("twin", {"a": 1})], lambda *_: {})
    grid = Stages(tmp_path)
    grid.folder(first).mkdir(parents=True)
    (grid.folder(first) / "result.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        grid.result(first)


def test_a_stopped_stage_is_not_finished(tmp_path):
    def stop(stage, folder, needs):
        raise Stopped

    grid, stage = Stages(tmp_path), Stage("a", {"nested": {"deep": 1}})
    with pytest.raises(Stopped):
        grid.run([stage], stop)
    assert grid.result(stage) is None
    (row,) = grid.run([stage], lambda *_: {"x": 2})
    assert (row["run"], row["nested.deep"], row["x"]) == ("a", 1, 2)


def test_a_process_that_does_not_write_computes_along(tmp_path):
    stage = Stage("a", {"x": 1})
    (row,) = Stages(tmp_path, writes=False).run([stage], lambda *_: {"x": 2})
    assert row["x"] == 2
    assert list(tmp_path.iterdir()) == []


def test_shares_keep_together_what_is_tied_and_leave_nothing_out():
    sft = [Stage(f"sft{seed}", {"seed": seed}) for seed in range(3)]
    tops = [Stage(f"top{seed}", {"seed": seed, "top": 1}, (sft[seed],)) for seed in range(3)]
    both = Stage("both", {"all": 1}, (sft[0], sft[2]))
    plan = [*sft, *tops, both]
    shares = [[stage.name for stage in part(plan, i, 2)] for i in range(2)]
    assert shares == [["sft0", "sft2", "top0", "top2", "both"], ["sft1", "top1"]]
    with pytest.raises(UserError, match="share 2/2"):
        part(plan, 2, 2)


# One folder


def opened(path: Path, settings: dict | None = None, what: str = "evaluation"):
    with StageFolder(path, {"a": {"b": 1}} if settings is None else settings, what=what, files=("rows",)) as stage:
        stage.journal(("x",)).add("k", {"x": 1})
        return stage


@pytest.mark.parametrize("left", [".run.json-abc", ".rows-x1y2", ".journal.jsonl-q", ".result.json-abc", ".lock"])
def test_what_a_kill_leaves_does_not_block_a_folder(left, tmp_path):
    if "rows" in left:
        (tmp_path / left).mkdir()
    else:
        (tmp_path / left).write_text("")
    opened(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["journal.jsonl", "run.json"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b'{"what": 1}', b'{"what": "evaluation", "settings": 3}'])
def test_a_damaged_description_is_named_and_nothing_lost(content, tmp_path):
    opened(tmp_path)
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json is damaged: .*choose another folder with --out, or restore it"):
        opened(tmp_path)
    assert (tmp_path / "run.json").read_bytes() == content
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1
    assert not (tmp_path / ".lock").exists(), "the folder is free again"


def test_a_folder_of_something_else_is_refused(tmp_path):
    opened(tmp_path / "a")
    with pytest.raises(UserError, match=r"holds another evaluation \(a.b: 1 before, 2 now\): choose another folder"):
        opened(tmp_path / "a", {"a": {"b": 2}})
    with pytest.raises(UserError, match="holds a evaluation, not a CRV run"):
        opened(tmp_path / "a", what="CRV run")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"b is not empty \(thesis.tex\) and holds no evaluation"):
        opened(tmp_path / "b")
    with pytest.raises(UserError, match=r"thesis.tex is a file"):
        opened(tmp_path / "b" / "thesis.tex")
    (tmp_path / "c" / "run.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run.json is a folder where a file should be"):
        opened(tmp_path / "c")
    (tmp_path / "d").mkdir()
    os.chmod(tmp_path / "d", 0o500)
    if not os.access(tmp_path / "d", os.W_OK):
        with pytest.raises(UserError, match="d cannot be written"):
            opened(tmp_path / "d")


def test_the_folder_is_locked_while_it_is_open(tmp_path):
    with StageFolder(tmp_path, {}, what="CRV run") as stage, FolderLock(tmp_path):
        assert (tmp_path / ".lock").exists()
        assert stage.finish([{"x": 1}]) == [{"x": 1}]
    assert not (tmp_path / ".lock").exists()
    with StageFolder(tmp_path, {}, what="CRV run"):
        assert not (tmp_path / "result.json").exists(), "what is begun again is not finished"
