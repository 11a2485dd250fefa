"""Where a job stands, as `smallr stages` shows it."""

from __future__ import annotations

import json
import os
import re

import pytest

from smallr.cli.main import main
from smallr.core.errors import UserError
from smallr.core.files import host_name
from smallr.core.locks import FolderLock
from smallr.core.stage_table import Line, State, show, states
from smallr.core.stages import Stage, StageFolder, Stages, Stopped


def plan(rate: float = 0.1) -> list[Stage]:
    sft = [Stage(f"sft-{seed}", {"seed": seed, "rate": rate}) for seed in range(4)]
    return [*sft, Stage("all", {}, tuple(sft))]


def until(name: str):
    """Work that is stopped before a stage."""

    def work(stage, folder, needs):
        (folder / "journal.jsonl").write_text("a\nb\n")
        if stage.name == name:
            raise Stopped
        return {"x": 1.0}

    return work


def run(out, stages, name: str) -> None:
    with pytest.raises(Stopped):
        Stages(out).run(stages, until(name))


def test_every_state_and_the_time_that_is_left(tmp_path, capsys):
    run(tmp_path / "grid", plan(0.2), "sft-1")
    run(tmp_path / "grid", plan(), "sft-2")
    for number, folder in enumerate(sorted((tmp_path / "grid").glob("sft-[01]-*"))):
        if (folder / "result.json").exists():
            result = json.loads((folder / "result.json").read_text())
            (folder / "result.json").write_text(json.dumps({**result, "seconds": 100 + 20 * number}))
    lines = {line.name: line for line in states(tmp_path / "grid")}
    stale = [name for name, line in lines.items() if line.state is State.STALE]
    assert len(stale) == 2
    assert [lines[name].state for name in ("sft-0", "sft-1", "sft-2", "sft-3", "all")] == [
        State.DONE, State.DONE, State.BEGUN, State.WAITING, State.WAITING,
    ]  # fmt: skip
    assert lines["sft-2"].note == "2 pieces finished"
    mean = (lines["sft-0"].seconds + lines["sft-1"].seconds) / 2
    assert lines["sft-3"].seconds == mean
    assert lines["all"].seconds is None
    (begun,) = (tmp_path / "grid").glob(f"{plan()[2].name}-{plan()[2].digest}")
    with FolderLock(begun):
        (line,) = (line for line in states(tmp_path / "grid") if line.name == "sft-2")
        assert line.state is State.ACTIVE
        assert f"process {os.getpid()} on {host_name()}" in line.note
    (tmp_path / "grid" / f"sft-0-{plan()[0].digest}" / "result.json").write_text("[]")
    (line,) = (line for line in states(tmp_path / "grid") if line.name == "sft-0")
    assert line.state is State.DAMAGED
    assert main(["stages", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^grid/sft-1 +done ", shown, re.MULTILINE)
    assert "7 stages: 1 done, 1 begun, 2 waiting, 2 stale, 1 damaged; at least 0:0" in shown


def test_estimates_are_those_of_the_plan_until_a_stage_of_the_kind_is_finished(tmp_path, capsys):
    grid, runs = Stages(tmp_path), [Stage(f"run-{seed}", {"seed": seed}) for seed in range(2)]
    texts = [Stage(name, {"name": name}) for name in ("texts", "more")]
    for stage, amount in zip([*runs, texts[0]], (10, 40, 7), strict=True):
        grid.expect(stage, "writing" if stage is texts[0] else "training", amount, 60.0)
    with pytest.raises(Stopped):
        grid.run([*runs, *texts], until("run-0"))
    assert re.search(r"^run-1 +waiting +about 0:01:00\ntexts .* 0:01:00\nmore +waiting +unknown$", *_first(capsys))
    with pytest.raises(Stopped):
        grid.run([*runs, *texts], until("run-1"))
    result = next(tmp_path.glob("run-0-*/result.json"))
    result.write_text(json.dumps({**json.loads(result.read_text()), "seconds": 5.0}))
    # Its last session took 5 seconds; how long the one took that was stopped in it, nobody knows.
    (interrupted, other, *_) = states(tmp_path)
    assert (interrupted.seconds, other.seconds) == (5.0, 60.0)
    assert interrupted.note.endswith("since it last went on")
    result.write_text(json.dumps({**json.loads(result.read_text()), "resumed": False}))
    assert [line.seconds for line in states(tmp_path)] == [5.0, 20.0, 60.0, None]
    assert show(states(tmp_path)).endswith("at least 0:01:20 left")


def _first(capsys) -> tuple[str, re.RegexFlag]:
    return capsys.readouterr().out, re.MULTILINE


def test_folders_of_single_jobs(tmp_path, capsys):
    with StageFolder(tmp_path / "evals" / "gsm8k", {"model": "m"}, what="evaluation", pieces="answers.jsonl") as stage:
        stage.journal().add("a", {})
        stage.finish({"accuracy": 1.0})
    (tmp_path / "sft" / "checkpoints" / "20").mkdir(parents=True)
    (tmp_path / "sft" / "checkpoints" / "100").mkdir()
    (line,) = states(tmp_path / "evals" / "gsm8k")
    assert (line.name, line.state, line.note) == ("gsm8k", State.DONE, "1 pieces finished")
    assert [(line.name, line.state, line.note) for line in states(tmp_path)] == [
        ("evals/gsm8k", State.DONE, "1 pieces finished"),
        ("sft", State.BEGUN, "checkpoint of step 100"),
    ]
    with pytest.raises(UserError, match="no stages there"):
        states(tmp_path / "sft" / "checkpoints")
    for path in (tmp_path / "missing", tmp_path / "evals" / "gsm8k" / "run.json"):
        assert main(["stages", str(path)]) == 1
        assert re.search(r"smallr: .* is no folder", capsys.readouterr().err)


def test_many_stages_are_summed_up():
    lines = [Line(f"s{i}", State.DONE, 60.0) for i in range(50)] + [Line("s50", State.WAITING, 60.0)]
    assert show(lines) == "51 stages: 50 done, 1 waiting; about 0:01:00 left"
    assert show(lines[48:]).splitlines()[0] == "s48  done     0:01:00"
