"""A folder of a run in which something is not what it should be: a clear error, and nothing else is changed."""

from __future__ import annotations

import contextlib
import json

import pytest

from smallr.core.errors import UserError
from smallr.core.stages import StageFolder
from smallr.training.resume import earlier_run
from smallr.training.workdir import Workdir
from tests.runs import smoke


def begin(path):
    with contextlib.closing(Workdir(path, smoke("sft"))) as workdir:
        workdir.save_config("f", [], {})
        workdir.open_metrics(0)


def test_a_run_that_wrote_nothing_leaves_no_folder(tmp_path):
    Workdir(tmp_path / "new", smoke("sft")).close()
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    Workdir(tmp_path / "mine", smoke("sft")).close()
    assert (tmp_path / "mine").exists()
    begin(tmp_path / "begun")
    assert (tmp_path / "begun" / "config.json").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
def test_a_folder_in_a_files_place_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine").write_text("x")
    with pytest.raises(UserError, match=rf"{name} is a folder where a file should be: move it away"):
        begin(tmp_path)
    assert (tmp_path / name / "mine").read_text() == "x"
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("name", ["tensorboard", "checkpoints"])
def test_a_file_in_a_folders_place_is_named(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=rf"{name}.*( is a file|cannot be written)"):
        begin(tmp_path)
    assert (tmp_path / name).read_text() == "x"


@pytest.mark.parametrize(
    ("horizons", "message"),
    [
        ([{"start": "0", "steps": 5}], "'horizons' holds something else"),
        ([{"start": 0, "steps": None}], "'horizons' holds something else"),
        ([{"start": 0}], "steps"),
        ([[0, 5]], "mapping"),
        ({}, "'horizons' is no list"),
    ],
)
def test_horizons_that_are_none_are_named(tmp_path, horizons, message):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    saved = {"config": {}, "data_fingerprint": "f", "horizons": horizons}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=rf"config.json cannot be used \(.*{message}.*restore the file or use another"):
        earlier_run(tmp_path)


def test_a_stages_result_that_is_a_folder_is_named_and_the_lock_freed(tmp_path):
    with StageFolder(tmp_path / "out", {}) as stage:
        stage.finish(1)
    (tmp_path / "out" / "result.json").unlink()
    (tmp_path / "out" / "result.json").mkdir()
    for _ in range(2):
        with pytest.raises(UserError, match=r"result\.json cannot be replaced .*: move it away"):
            StageFolder(tmp_path / "out", {}).__enter__()
