import json

import jax
import pytest
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.training.resume import Difference, check_resume, compare_configs, save_config

_FROZEN = ("seed", "model", "data", "compute.dtype")
_CONFIG = {
    "seed": 0,
    "model": "smollm2-135m-instruct",
    "model_note": "x",
    "steps": 100,
    "compute": {"dtype": "bfloat16", "remat": "full"},
    "data": {"train": "rows.jsonl", "columns": {"prompt": "question"}, "splits": ("train", "test")},
    "optimizer": {"learning_rate": 1e-6},
}


def _changed(**changes) -> dict:
    config = json.loads(json.dumps(_CONFIG))
    for name, value in changes.items():
        node = config
        *parents, last = name.split("__")
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config


def _run_with_checkpoint(tmp_path, config=_CONFIG, fingerprint="f" * 64):
    save_config(tmp_path, config, fingerprint)
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)


def test_differences_are_split_by_frozen_prefix():
    current = _changed(
        model="tiny-random", model_note="y", steps=200, compute__dtype="float32", compute__remat="none",
        data__columns={"prompt": "q"}, optimizer={"learning_rate": 1e-6, "b1": 0.9},
    )  # fmt: skip
    tied, others = compare_configs(_CONFIG, current, _FROZEN)
    # "data.splits" is a tuple here and a list in JSON: the same.
    assert tied == [
        Difference("compute.dtype", "bfloat16", "float32"),
        Difference("data.columns.prompt", "question", "q"),
        Difference("model", "smollm2-135m-instruct", "tiny-random"),
    ]
    assert [(d.field, d.saved, d.current) for d in others] == [
        ("compute.remat", "full", "none"),
        ("model_note", "x", "y"),  # not under "model"
        ("optimizer.b1", "(absent)", 0.9),
        ("steps", 100, 200),
    ]


def test_the_same_config_resumes_without_notes(tmp_path):
    _run_with_checkpoint(tmp_path)
    assert check_resume(tmp_path, _CONFIG, "f" * 64, _FROZEN) == []
    assert check_resume(tmp_path, ConfigDict(_CONFIG), "f" * 64, _FROZEN) == []


def test_a_config_dict_is_saved_as_json(tmp_path):
    save_config(tmp_path / "new", ConfigDict(_CONFIG), "abc")
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert saved == {"config": json.loads(json.dumps(_CONFIG)), "data_fingerprint": "abc"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]


def test_allowed_changes_are_notes(tmp_path):
    _run_with_checkpoint(tmp_path)
    notes = check_resume(tmp_path, _changed(steps=200, optimizer__learning_rate=3e-7), "f" * 64, _FROZEN)
    assert notes == [
        "config.optimizer.learning_rate is 3e-07, was 1e-06 before resuming",
        "config.steps is 200, was 100 before resuming",
    ]


def test_frozen_changes_stop_with_a_table(tmp_path):
    _run_with_checkpoint(tmp_path)
    with pytest.raises(UserError) as error:
        check_resume(tmp_path, _changed(model="tiny-random", seed=1, steps=200), "e" * 64, _FROZEN)
    assert str(error.value).splitlines() == [
        f"{tmp_path} holds checkpoints of a run with another configuration:",
        "field  checkpoint               this run",
        "-----  -----------------------  -------------",
        'model  "smollm2-135m-instruct"  "tiny-random"',
        "seed   0                        1",
        "Set these fields back to go on from there, or use another workdir to start anew.",
    ]


def test_changed_data_under_the_same_name_is_told(tmp_path):
    _run_with_checkpoint(tmp_path)
    with pytest.raises(
        UserError, match=r"training data \(rows.jsonl\) is not what .* fingerprint eeeeeeeeeeee, .* ffffffffffff"
    ):
        check_resume(tmp_path, _changed(steps=200), "e" * 64, _FROZEN)


def test_without_checkpoints_any_config_may_start(tmp_path):
    save_config(tmp_path, _CONFIG, "f" * 64)
    (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / "damaged-10").mkdir()
    assert check_resume(tmp_path, _changed(model="other"), "e" * 64, _FROZEN) == []
    assert check_resume(tmp_path / "none", _CONFIG, "", _FROZEN) == []


@pytest.mark.parametrize("content", [None, "{", '{"config": {}}', "[]"])
def test_checkpoints_without_a_readable_config_are_an_error(tmp_path, content):
    _run_with_checkpoint(tmp_path)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"has checkpoints, but config\.json cannot be read"):
        check_resume(tmp_path, _CONFIG, "f" * 64, _FROZEN)


def test_only_process_zero_saves_the_config(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    save_config(tmp_path, _CONFIG, "f" * 64)
    assert list(tmp_path.iterdir()) == []
