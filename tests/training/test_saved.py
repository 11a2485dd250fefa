"""Files of a run that are damaged: one error that names the file, or a warning where the run can be read without."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from smallr.cli.config_files import of_run
from smallr.core.errors import UserError
from smallr.evals.comparison import compare
from smallr.training.card import Training
from smallr.training.resume import earlier_run
from smallr.training.saved import SavedRun, find_run
from tests.models.test_malformed import mutated, mutated_json
from tests.runs import smoke

CONFIG = {"config": {"model": "m", "data": {"chat": True}}, "data_fingerprint": "f", "horizons": [{"steps": 4}]}
METRICS = [{"step": step, "split": "train", "loss": 1.0 / step} for step in (1, 2, 3, 4)]
SAMPLE = {"id": "a", "sample": 0, "gold": "4", "correct": True, "reason": ""}


@pytest.fixture
def workdir(tmp_path) -> Path:
    """A run as far as its readable files go, and a finished evaluation."""
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "report.json").write_text(json.dumps({"steps": 4, "wall": 1.0}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    (tmp_path / "results.json").write_text(json.dumps({"benchmark": "b", "metric": "accuracy", "model": "m"}))
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(SAMPLE | {"id": name}) + "\n" for name in "abc"))
    return tmp_path


def saved(workdir: Path) -> SavedRun:
    return SavedRun(workdir, CONFIG["config"], SimpleNamespace(step=4))


READERS = {
    "report.json": lambda workdir: saved(workdir).report,
    "metrics.jsonl": lambda workdir: Training.of(saved(workdir)),
    "config.json": lambda workdir: [read(workdir) for read in (of_run, earlier_run, find_run)],
    "results.json": lambda workdir: compare(workdir, workdir),
    "samples.jsonl": lambda workdir: compare(workdir, workdir),
}


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_read_or_named(name, workdir):
    content, rng = (workdir / name).read_bytes(), random.Random(name)
    for number in range(100):
        changed = mutated(content, rng)
        if number % 2:
            lines = [json.loads(line) for line in content.splitlines()]
            place = rng.randrange(len(lines))
            lines[place] = mutated_json(lines[place], rng)
            changed = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        (workdir / name).write_bytes(changed)
        said = name
        try:
            READERS[name](workdir)
        except UserError as error:
            said = str(error)
        assert any(word in said for word in (name, "checkpoint", "questions")), said


@pytest.mark.parametrize("content", ["{", "[1]", "\udcff", "[" * 100_000])
def test_a_damaged_report_is_left_out_with_a_warning(content, workdir, caplog):
    (workdir / "report.json").write_text(content, errors="surrogateescape")
    assert saved(workdir).report == {}
    assert f"{workdir / 'report.json'} is damaged" in caplog.text


def test_a_damaged_line_of_metrics_is_left_out_with_its_number(workdir, caplog):
    (workdir / "metrics.jsonl").write_text(json.dumps(METRICS[0]) + "\n{\n" + json.dumps(METRICS[3]) + "\n")
    assert Training.of(saved(workdir)).line["step"] == 4
    assert "metrics.jsonl line 2 is not a line of metrics" in caplog.text


def test_damaged_lines_and_fields_are_named(workdir):
    (workdir / "samples.jsonl").write_text(json.dumps(SAMPLE) + "\n{")
    with pytest.raises(UserError, match=r"samples\.jsonl, line 2 is damaged: not valid JSON"):
        compare(workdir, workdir)
    (workdir / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"results\.json is damaged: it has no 'benchmark': give folders of finished"):
        compare(workdir, workdir)
    (workdir / "config.json").write_text('{"config": []}')
    with pytest.raises(UserError, match=r"config\.json is damaged: 'config' is no dict but list"):
        of_run(str(workdir))
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        earlier_run(workdir)


def test_a_run_of_a_version_with_fewer_fields_gets_their_defaults(tmp_path):
    config = smoke("sft").to_dict()
    rate = config["optimizer"]["learning_rate"] = 0.25
    del config["track"], config["optimizer"]["eps"]
    (tmp_path / "config.json").write_text(json.dumps({"config": config}, default=str))
    found = of_run(str(tmp_path))
    assert (found.track.to, found.optimizer.eps, found.optimizer.learning_rate) == (("tensorboard",), 1e-8, rate)
