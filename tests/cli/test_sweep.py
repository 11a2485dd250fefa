"""Sweeps: the grid, stages that are done once, the table, and a command that trains the best setting again."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest

import smallr.train
from smallr.cli import grid
from smallr.cli.main import main
from smallr.cli.parsing import UsageError
from smallr.core.errors import UserError
from smallr.training.steplog import NonFiniteError

FEW = ["--config.steps=1", "--config.data.train_split=train[:8]", "--config.data.eval_split=test[:6]"]


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by a formula; the list of runs that were trained, as (learning rate, large beta, seed)."""
    runs = []

    def train(config, workdir):
        rate, beta, seed = config.optimizer.learning_rate, config.objective.beta.large, config.seed
        runs.append((rate, beta, seed))
        if rate > 0.1:
            raise NonFiniteError("loss is NaN at step 1")
        (workdir / "metrics.jsonl").write_text("")
        return {"finished": True, "after": {"loss": beta, "accuracy": rate * 100 + 0.01 * seed}}

    monkeypatch.setattr(smallr.train, "train", train)
    return runs


def sweep(out, *argv: str) -> int:
    return main(["sweep", "cogpo:smoke", f"--out={out}", *argv])


def test_a_grid_is_all_combinations():
    settings = grid.read_grid(["optimizer.learning_rate=1e-6,3e-6", "config.objective.beta.large=0.3, 0.5"])
    assert [str(each) for each in settings] == [
        f"optimizer.learning_rate={rate}, objective.beta.large={beta}"
        for rate in ("1e-6", "3e-6")
        for beta in (0.3, 0.5)
    ]
    assert grid.read_grid([]) == [grid.Setting(())]
    assert grid.split_values("('a', 'b'),[1,2],'x,y',z") == ["('a', 'b')", "[1,2]", "'x,y'", "z"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--grid optimizer.lr=1,2", "did you mean optimizer.learning_rate"),
        ("--grid optimizer.learning_rate=1,x", "must be a number"),
        ("--grid optimizer.learning_rate", "expected FIELD=VALUE"),
        ("--grid optimizer.learning_rate=1,,2", "expected FIELD=VALUE"),
        ("--grid optimizer.learning_rate=1,2,1", "1 stands twice"),
        ("--grid optimizer.learning_rate=1,1.0", "is the same as"),
        ("--grid epochs=1 --grid epochs=2", "given twice"),
        ("--grid seed=1,2", "--seeds=3"),
        ("--share=2/2", "--share=2/2"),
        ("--goal=best", "must be one of: min, max"),
        ("--seeds=0", "at least 1"),
        ("--grid optimizer.schedule=linear,cosin", "must be one of: cosine"),
        ("--grid objective.loss=sigmoid,sigmod", "sigmod"),
        ("--grid batch.rows=2,-1", "must be at least 1"),
        ("--grid model=tiny-random,nothing-of-this-name", "config.model: "),
        ("--config.data.train=[{'path':'nothing.jsonl'}]", "config.data.train[0]: "),
        ("--config.data.eval=", "held-out rows or a benchmark"),
    ],
)
def test_what_cannot_be_run_is_refused_before_any_work(trained, tmp_path, capsys, argv, message):
    assert sweep(tmp_path / "out", *argv.split()) in (1, 2)
    error = capsys.readouterr().err
    assert re.search(re.escape(message), error), error
    assert sum(not line.endswith("loading JAX …") for line in error.strip().splitlines()) == 1
    assert not trained
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_is_finished_is_kept_and_the_best_is_named(trained, tmp_path, capsys):
    argv = ["--grid", "optimizer.learning_rate=1e-3,3e-3", "--grid", "objective.beta.large=0.3,0.5", "--seeds=2"]
    assert sweep(tmp_path, *argv, "--share=0/2") == 0
    assert len(trained) == 4
    assert "4 of 8 runs are finished" in capsys.readouterr().out
    assert sweep(tmp_path, *argv) == 0
    assert len(trained) == len(set(trained)) == 8
    shown = capsys.readouterr().out
    assert "8 stages: 4 done, 4 waiting" in " ".join(shown.split())
    assert sweep(tmp_path, *argv, "--metric=loss") == 0
    assert len(trained) == 8
    lowest = capsys.readouterr().out
    assert "best: optimizer.learning_rate=3e-3, objective.beta.large=0.3 (highest mean of accuracy)" in shown
    assert "best: optimizer.learning_rate=1e-3, objective.beta.large=0.3 (lowest mean of loss)" in lowest
    # accuracy of two seeds: 0.3 and 0.31; half of the interval is t(0.975, 1) s / sqrt 2 = 12.706 * 0.005
    assert "| optimizer.learning_rate=3e-3, objective.beta.large=0.3 | 2 | 0.3050 ± 0.0635 | 0.3000 ± 0.0000 |" in shown
    assert "not told apart by 2 seed(s): optimizer.learning_rate=3e-3, objective.beta.large=0.5" in shown
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} >= {"table.md", "runs.csv", "plot.png"}
    assert sweep(tmp_path, *argv, "--metric=accuracie") == 1
    assert "did you mean 'accuracy'" in capsys.readouterr().err


def test_a_run_that_diverges_does_not_end_the_sweep(trained, tmp_path, capsys):
    assert sweep(tmp_path, "--grid", "optimizer.learning_rate=1,1e-3") == 0
    shown = capsys.readouterr().out
    assert "diverged: loss is NaN at step 1" in shown
    assert "| optimizer.learning_rate=1 | 1 | – | – | 1 |" in shown
    assert "best: optimizer.learning_rate=1e-3" in shown


def test_without_matplotlib_there_is_no_plot(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert sweep(tmp_path) == 0
    shown = capsys.readouterr().out
    assert shown.index("there will be no plots") < shown.index("accuracy")  # before the first second of work
    assert not (tmp_path / "plot.png").exists()


def test_a_stopped_run_is_gone_on_with(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(smallr.train, "train", lambda config, workdir: {"finished": False})
    assert sweep(tmp_path) == 0
    assert f"stopped; go on with: smallr sweep cogpo:smoke --out={tmp_path}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_of_the_best_trains_the_same_model(tmp_path, capsys):
    out = tmp_path / "sweep"
    assert sweep(out, *FEW, "--grid", "objective.beta.large=0.6") == 0
    shown = capsys.readouterr().out
    line = re.search(r"^train it again: smallr (.*)$", shown, re.MULTILINE)[1]
    best = re.search(r"^best: (\S+)", shown, re.MULTILINE)[1]
    (result,) = out.glob(f"{best.removeprefix('objective.beta.')}-s0-*/result.json")
    assert not (result.parent / "checkpoints").exists()
    expected = {name: each["json"] for name, each in json.loads(result.read_text())["value"]["mapping"].items()}
    expected.pop(grid.DIVERGED)
    assert main([*shlex.split(line), f"--workdir={tmp_path / 'again'}"]) == 0
    assert json.loads((tmp_path / "again/report.json").read_text())["after"] == expected


def test_results_say_which_metrics_there_are():
    with pytest.raises(UserError, match="must be one of: loss, benchmark/accuracy"):
        grid.Results([{"setting": "a", "seed": 0, "loss": 1.0, "benchmark/accuracy": 0.5}], "accuracy")
    found = grid.Results([{"setting": name, "seed": 0, "loss": x, "kl": -x} for name, x in (("a", 1.0), ("b", 2.0))])
    assert (found.metric, found.best()) == ("loss", "a")
    assert grid.Results(found.rows, "kl", "max").best() == "a"
    assert grid.Results([]).best() is None
    with pytest.raises(UsageError):
        grid.read_grid(["=1"])


def test_metrics_of_a_run_are_those_of_its_end():
    lines = [
        {"step": 0, "time": 1.0, "split": "benchmark", "accuracy": 0.1},
        {"step": 4, "time": 2.0, "split": "train", "loss": 3.0},
        {"step": 4, "time": 3.0, "split": "benchmark", "accuracy": 0.4, "tokens_per_answer": "NaN"},
    ]
    found = grid.metrics_of({"after": {"loss": 1.0}}, lines)
    assert (found.pop("loss"), found.pop("benchmark/accuracy")) == (1.0, 0.4)
    assert list(found) == ["benchmark/tokens_per_answer"]
    assert grid.metrics_of({"after": {}}, []) == {}


def test_the_command_of_a_setting_leaves_the_sweeps_own_flags_out():
    argv = [
        "cogpo",
        "--lora",
        "--grid",
        "a=1,2",
        "--seeds=3",
        "--out",
        "x",
        "--config.steps=2",
        "--keep-checkpoints",
        "--share=0/2",
    ]
    setting = grid.Setting((("objective.loss", "a b"),))
    assert grid.train_command(argv, setting, 5) == (
        "smallr train cogpo --lora --config.steps=2 '--config.objective.loss=a b' --config.seed=5"
    )
