"""Trackers: the names, what they are given, a resumed run, and one that fails while the run goes on."""

from __future__ import annotations

import json
import sys
import time
import types

import pytest

from smallr.config import base
from smallr.core.errors import UserError
from smallr.training.metrics import MetricsWriter, read_metrics
from smallr.training.tracking import check_trackers, open_trackers


def config_of(*names, **fields):
    config = base()
    config.track.to = names
    config.track.update(fields)
    return config


def write_run(workdir, config, steps, resume=0):
    with MetricsWriter(workdir, resume, lambda: open_trackers(config, workdir, resume)) as writer:
        for step in steps:
            writer.write(step, {"loss": step / 4, "accuracy/small": 0.5})
        writer.write(steps[-1], {"loss": 9.0}, "eval")


class FakeWandb(types.ModuleType):
    """Takes what the library's functions are given."""

    def __init__(self, fails_at=None):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")
        self.opened, self.logged, self.finished, self.fails_at = [], [], 0, fails_at

    def init(self, **options):
        self.opened.append(options)
        return self

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, metrics):
        if metrics["step"] == self.fails_at:
            raise ConnectionError("the network is gone")
        self.logged.append(metrics)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_run_is_handed_on_and_gone_on_with_under_its_identity(wandb, tmp_path):
    config = config_of("wandb", project="mine")
    write_run(tmp_path, config, (1, 2))
    write_run(tmp_path, config, (2, 3), resume=1)
    first, second = wandb.opened
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert (first["project"], first["name"]) == ("mine", "-".join(tmp_path.parts[-2:]))
    assert first["config"]["optimizer"]["learning_rate"] == 1e-5
    assert wandb.logged[0] == {"step": 1, "train/loss": 0.25, "train/accuracy/small": 0.5}
    assert [line["step"] for line in wandb.logged] == [1, 2, 2, 2, 3, 3]
    assert wandb.finished == 2
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"wandb": first["id"]}


def test_a_tracker_that_fails_is_left_alone_and_the_run_goes_on(wandb, tmp_path, caplog):
    wandb.fails_at = 2
    write_run(tmp_path, config_of("tensorboard", "wandb"), (1, 2, 3))
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 3]
    assert [line["step"] for line in wandb.logged] == [1]
    assert "wandb failed and is left alone from here on" in caplog.text
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_tracker_that_refuses_the_run_stops_it_at_the_start(wandb, tmp_path, monkeypatch):
    def refuse(**_):
        raise RuntimeError("no API key")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"config.track.to: wandb cannot be opened: no API key"):
        write_run(tmp_path, config_of("wandb"), (1,))


def test_names_are_checked_before_anything_is_imported(monkeypatch):
    with pytest.raises(
        UserError, match=r"config.track.to: 'wanb': did you mean wandb\? must be of: tensorboard, wandb"
    ):
        check_trackers(["wanb"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"config.track.to: mlflow is not installed: pip install mlflow"):
        check_trackers(["mlflow"])


@pytest.mark.process
def test_trackio_keeps_what_a_resumed_run_logs(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when the library is imported
    pytest.importorskip("trackio", reason="needs pip install trackio")
    config = config_of("trackio", project="smallr-test")
    write_run(tmp_path / "run", config, (1, 2))
    write_run(tmp_path / "run", config, (3,), resume=2)
    name = json.loads((tmp_path / "run" / "tracking.json").read_text())["trackio"]
    import trackio

    history = trackio.Api().runs("smallr-test")
    assert name in [run.name for run in history]
    assert sum(run.name.rpartition("-")[0] == name.rpartition("-")[0] for run in history) == 1


@pytest.mark.process
def test_mlflow_keeps_what_a_resumed_run_logs(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="needs pip install mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    config = config_of("mlflow", project="smallr-test")
    write_run(tmp_path / "run", config, (1, 2))
    write_run(tmp_path / "run", config, (3,), resume=2)
    run = json.loads((tmp_path / "run" / "tracking.json").read_text())["mlflow"]
    client = mlflow.MlflowClient()
    assert [(m.step, m.value) for m in client.get_metric_history(run, "train/loss")] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert client.get_run(run).data.params["optimizer.learning_rate"] == "1e-05"


@pytest.mark.process
def test_wandb_keeps_an_offline_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_run(tmp_path / "run", config_of("wandb"), (1, 2))
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    deadline = time.monotonic() + 20
    while next(iter(folder.glob("*.wandb"))).stat().st_size < 500:  # another process of theirs writes it
        assert time.monotonic() < deadline
        time.sleep(0.1)
