"""A grid of runs: what is kept, what goes on, who does what; and the arithmetic of its tables."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.grid import Grid, Run, Stopped, flat, part
from experiments.tables import bars, curves, difference, groups, markdown, mean, table, write_csv
from smallr.core.errors import UserError

ROOT = Path(__file__).parents[2]

KILLED = """
import sys, time
from pathlib import Path
from experiments.grid import Grid, Run
out = Path(sys.argv[1])
runs = [Run(f"run{i}", {"seed": i}) for i in range(4)]
def work(run, folder, needs):
    with (out / "calls").open("a") as calls:
        calls.write(run.name + "\\n")
    state = folder / "state"
    begun = state.exists()
    state.write_text("half")
    if run.name == "run2" and not begun:
        time.sleep(60)
    return {"value": run.settings["seed"] * 2, "resumed": begun}
print(Grid(out).go(runs, work))
"""


def test_a_killed_grid_goes_on_and_computes_no_run_twice(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    first = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("run2-*/state")):
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert len(list(tmp_path.glob("*/result.json"))) == 2

    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert (tmp_path / "calls").read_text().split() == ["run0", "run1", "run2", "run2", "run3"]
    results = {json.loads(p.read_text())["name"]: json.loads(p.read_text()) for p in tmp_path.glob("*/result.json")}
    assert [results[f"run{i}"]["metrics"]["value"] for i in range(4)] == [0, 2, 4, 6]
    assert [results[f"run{i}"]["metrics"]["resumed"] for i in range(4)] == [0, 0, 1, 0]
    assert "'value': 6.0" in done.stdout


def test_other_settings_are_another_run_also_of_needed_runs(tmp_path):
    def base(rate):
        return Run("base", {"rate": rate})

    def work(run, folder, needs):
        assert [path.name.partition("-")[0] for path in needs] == ["base" for _ in run.needs]
        return {"x": run.settings.get("rate", 0)}

    one, two = (Run("top", {"beta": 1}, (base(rate),)) for rate in (0.1, 0.2))
    grid = Grid(tmp_path)
    grid.go([base(0.1), one], work)
    assert grid.folder(one) != grid.folder(two)
    assert grid.result(one)["metrics"] == {"x": 0}
    assert Grid(tmp_path).result(two) is None
    assert Run("other name", {"beta": 1}, (base(0.1),)).digest == one.digest


def test_what_cannot_be_done_is_refused(tmp_path):
    first, second = Run("first", {"a": 1}), Run("second", {"a": 2}, (Run("first", {"a": 1}),))
    with pytest.raises(UserError, match="second needs first"):
        Grid(tmp_path).go([second, first], lambda *_: {})
    with pytest.raises(UserError, match="same settings"):
        Grid(tmp_path).go([first, Run("twin", {"a": 1})], lambda *_: {})

    grid = Grid(tmp_path)
    grid.folder(first).mkdir(parents=True)
    with (grid.folder(first) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            grid.go([first], lambda *_: {"x": 1})
    (grid.folder(first) / "result.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        grid.result(first)


def test_a_stopped_run_is_not_finished(tmp_path):
    def stop(run, folder, needs):
        raise Stopped

    grid, run = Grid(tmp_path), Run("a", {"nested": {"deep": 1}})
    with pytest.raises(Stopped):
        grid.go([run], stop)
    assert grid.result(run) is None
    (row,) = grid.go([run], lambda *_: {"x": 2})
    assert (row["run"], row["nested.deep"], row["x"]) == ("a", 1, 2.0)
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_shares_keep_together_what_is_tied_and_leave_nothing_out():
    sft = [Run(f"sft{seed}", {"seed": seed}) for seed in range(3)]
    tops = [Run(f"top{seed}", {"seed": seed, "top": 1}, (sft[seed],)) for seed in range(3)]
    both = Run("both", {"all": 1}, (sft[0], sft[2]))
    runs = [*sft, *tops, both]
    shares = [[run.name for run in part(runs, i, 2)] for i in range(2)]
    assert shares == [["sft0", "sft2", "top0", "top2", "both"], ["sft1", "top1"]]
    with pytest.raises(UserError, match="share 2/2"):
        part(runs, 2, 2)


def test_intervals_are_students():
    # s = 1, n = 3: t(0.975, 2) = 4.302653, divided by sqrt(3).
    found = mean([1.0, 2.0, 3.0])
    assert (found.value, found.count) == (2.0, 3)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert mean([0.25, math.nan]).show(2) == "0.25"
    assert mean([]).show() == "–"
    assert found.show(1) == "2.0 ± 2.5"


def test_differences_are_paired_over_seeds():
    # Seeds differ by far more than the arms do: paired, the difference is sure.
    rows = [{"seed": seed, "arm": arm, "x": 10.0 * seed + arm} for seed in range(3) for arm in (0, 1)]
    by_arm = groups(rows, ["arm"])
    found = difference(by_arm[(1,)], [*by_arm[(0,)][:2], {"seed": 9, "x": 5.0}], "x")
    assert (found.value, found.half, found.count) == (1.0, 0.0, 2)
    assert found.show(2, signed=True) == "+1.00 ± 0.00"


def test_files(tmp_path):
    rows = [{"arm": "a", "seed": 0, "x": 1.0}, {"arm": "a", "seed": 1, "x": 3.0}, {"arm": "b|c", "seed": 0, "y": 2.0}]
    write_csv(rows, tmp_path / "runs.csv")
    read = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert [row["x"] for row in read] == ["1.0", "3.0", ""]
    text = table(rows, ["arm"], {"x": "ex"}, digits=1)
    assert text.splitlines()[0] == "| arm | runs | ex |"
    assert text.splitlines()[2:] == ["| a | 2 | 2.0 ± 12.7 |", r"| b\|c | 1 | – |"]
    assert markdown(["h"], [["c"]]) == "| h |\n| --- |\n| c |\n"

    pytest.importorskip("matplotlib", reason="plots need the extra `experiments`")
    bars(rows, "arm", {"x": "ex"}, tmp_path / "bars.png")
    curves({"panel": (rows, "seed")}, {"x": "ex", "y": "why"}, tmp_path / "curves.png", note="note")
    for name in ("bars.png", "curves.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
