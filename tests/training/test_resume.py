import json

import jax
import pytest
from ml_collections import ConfigDict

from smallr.config import preference
from smallr.core.errors import UserError
from smallr.training.optimizer import Horizon
from smallr.training.resume import (
    ADDED,
    Difference,
    check_config,
    check_data,
    compare_configs,
    earlier_run,
    save_config,
)

_PLANNED = (Horizon(0, 100),)
_CONFIG = {
    "seed": 0,
    "model": "smollm2-135m-instruct",
    "steps": 100,
    "steps_of_something": 1,
    "compute": {"dtype": "bfloat16", "remat": "full"},
    "data": {"train": "rows.jsonl", "columns": {"prompt": "question"}, "splits": ("train", "test"), "eval": ""},
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


def _earlier(tmp_path, config=_CONFIG, fingerprint="f" * 64):
    save_config(tmp_path, config, fingerprint, _PLANNED, {})
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    return earlier_run(tmp_path)


def test_what_may_change_is_listed_and_all_else_is_tied():
    current = _changed(
        model="tiny-random", steps=200, steps_of_something=2, compute__dtype="float32", compute__remat="none",
        data__columns={"prompt": "q"}, data__eval="rows.jsonl", optimizer={"learning_rate": 1e-6, "b1": 0.9},
    )  # fmt: skip
    tied, free = compare_configs(_CONFIG, current)
    # "data.splits" is a tuple here and a list in JSON: the same.
    assert tied == [
        Difference("compute.dtype", "bfloat16", "float32"),
        Difference("data.columns.prompt", "question", "q"),
        Difference("model", "smollm2-135m-instruct", "tiny-random"),
        Difference("optimizer.b1", "(absent)", 0.9),  # a field that this version has and the checkpoint's had not
        Difference("steps_of_something", 1, 2),  # not under "steps"
    ]
    assert [(d.field, d.saved, d.current) for d in free] == [
        ("compute.remat", "full", "none"),
        ("data.eval", "", "rows.jsonl"),
        ("steps", 100, 200),
    ]


def test_of_a_run_on_pairs_what_changes_the_numbers_is_tied():
    """All fields of the config, one by one: those that are free are these."""
    config = preference()
    saved, free = config.to_dict(), set()

    def visit(node: dict, names: tuple[str, ...]) -> None:
        for name, value in list(node.items()):
            if isinstance(value, dict):
                visit(value, (*names, name))
                continue
            node[name] = "another"
            tied, others = compare_configs(config.to_dict(), saved)
            assert len(tied) + len(others) == 1
            if others:
                free.add(".".join((*names, name)))
            node[name] = value

    visit(saved, ())
    groups = {name.split(".")[0] for name in free}
    assert groups == {
        "steps", "epochs", "optimizer", "log_every", "eval_every", "data", "benchmark", "checkpoint", "mesh", "compute",
        "track", "best",
    }  # fmt: skip
    within = {name for name in free if name.split(".")[0] in ("optimizer", "data", "compute")}
    assert within == {
        "optimizer.on_extend", "optimizer.shard_over_data", "data.eval", "data.eval_split", "data.builtin.eval",
        "compute.remat", "compute.attention", "compute.logp_chunk",
    }  # fmt: skip


def test_a_run_from_before_a_field_goes_on_with_what_it_meant():
    """The defaults are those values, so that nobody has to set them; another value is a difference as ever."""
    now = preference().to_dict()
    before = preference().to_dict()
    for field in ADDED:
        group, name = field.split(".")
        assert before[group].pop(name) == ADDED[field]
    assert compare_configs(before, now) == ([], [])
    now["optimizer"]["name"] = "muon"
    assert compare_configs(before, now) == ([Difference("optimizer.name", "adamw", "muon")], [])


def test_a_run_from_before_attention_was_measured_computes_as_it_did(tmp_path):
    _earlier(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    del saved["attention"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert earlier_run(tmp_path).attention == {"impl": "auto", "device": "", "sequences": 0}


def test_the_same_config_resumes_without_notes(tmp_path):
    earlier = _earlier(tmp_path)
    assert check_config(tmp_path, earlier, _CONFIG) == []
    assert check_config(tmp_path, earlier, ConfigDict(_CONFIG)) == []
    assert earlier.horizons == _PLANNED
    check_data(tmp_path, earlier, _CONFIG, "f" * 64)


def test_a_config_dict_is_saved_as_json(tmp_path):
    save_config(tmp_path / "new", ConfigDict(_CONFIG), "abc", _PLANNED, {})
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert saved["config"] == json.loads(json.dumps(_CONFIG))
    assert saved["data_fingerprint"] == "abc"
    assert saved["horizons"] == [{"start": 0, "steps": 100, "how": "as_new"}]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]


def test_allowed_changes_are_notes(tmp_path):
    notes = check_config(tmp_path, _earlier(tmp_path), _changed(steps=200, compute__remat="dots"))
    assert notes == [
        'config.compute.remat is "dots", was "full" before resuming',
        "config.steps is 200, was 100 before resuming",
    ]


def test_other_changes_stop_with_a_table(tmp_path):
    with pytest.raises(UserError) as error:
        check_config(tmp_path, _earlier(tmp_path), _changed(model="tiny-random", seed=1, steps=200))
    assert str(error.value).splitlines() == [
        f"{tmp_path} holds checkpoints of a run with another configuration:",
        "field  checkpoint               this run",
        "-----  -----------------------  -------------",
        'model  "smollm2-135m-instruct"  "tiny-random"',
        "seed   0                        1",
        "Set these fields back to go on from there, or use another workdir to start anew.",
    ]


def test_changed_data_under_the_same_name_is_told(tmp_path):
    with pytest.raises(
        UserError, match=r"training data \(rows.jsonl\) is not what .* fingerprint eeeeeeeeeeee, .* ffffffffffff"
    ):
        check_data(tmp_path, _earlier(tmp_path), _changed(steps=200), "e" * 64)


def test_without_checkpoints_there_is_no_earlier_run(tmp_path):
    save_config(tmp_path, _CONFIG, "f" * 64, _PLANNED, {})
    (tmp_path / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / "damaged-10").mkdir()
    assert earlier_run(tmp_path) is None
    assert earlier_run(tmp_path / "none") is None


@pytest.mark.parametrize("content", [None, "{", '{"config": {}}', "[]"])
def test_checkpoints_without_a_readable_config_are_an_error(tmp_path, content):
    _earlier(tmp_path)
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"has checkpoints, but config\.json cannot be used"):
        earlier_run(tmp_path)


def test_only_process_zero_saves_the_config(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    save_config(tmp_path, _CONFIG, "f" * 64, _PLANNED, {})
    assert list(tmp_path.iterdir()) == []
