"""Whole runs in this process: every config, what they log, how they end."""

from __future__ import annotations

import importlib
import json
from typing import ClassVar

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.training.steplog import NonFiniteError
from tests.runs import metrics, smoke, train

# The last one is that of the next test, which takes its programs.
CONFIGS = ["dpo", "simpo", "kto", "sft", "adaptive.answer_first", "adaptive.rationale_first", "cogpo_lora", "cogpo"]


class Recorder:
    """A config that remembers which fields were read."""

    def __init__(self, node: ConfigDict, seen: set[str], prefix: str = ""):
        self._node, self._seen, self._prefix = node, seen, prefix

    def __getattr__(self, name):
        value = getattr(self._node, name)
        if isinstance(value, ConfigDict):
            return Recorder(value, self._seen, f"{self._prefix}{name}.")
        if not callable(value):
            self._seen.add(self._prefix + name)
        return value

    __getitem__ = __getattr__

    def get(self, name, default=None):
        return getattr(self, name) if name in self._node else default

    def keys(self):
        return self._node.keys()

    def __contains__(self, name):
        return name in self._node

    def items(self):
        return [(name, getattr(self, name)) for name in self._node]

    def to_dict(self):
        return {name: value.to_dict() if isinstance(value, Recorder) else value for name, value in self.items()}


def leaves(node: ConfigDict, prefix: str = "") -> set[str]:
    found = set()
    for name, value in node.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else {prefix + name}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_trains_and_every_field_is_read(name, tmp_path, monkeypatch, capsys):
    for module in ("resume", "rounds"):
        monkeypatch.setattr(f"smallr.training.{module}.to_plain", lambda config: config._node.to_dict())
    config, seen = smoke(name), set()
    report = train(Recorder(config, seen), tmp_path)
    assert leaves(config) == seen, "fields that nothing reads"

    assert report["finished"]
    assert report["steps"] == 4
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["step"] for line in metrics(tmp_path, "eval")] == [0, 2, 4]
    for field in ("loss", "grad_norm", "learning_rate", "tokens_per_second", "padding", "input_wait", "mfu"):
        assert all(np.isfinite(line[field]) for line in lines), field
    assert 0 < lines[0]["padding"] < 1
    if name == "kto":  # in four steps the KL estimate moves more than the rewards
        assert report["after"]["loss"] != report["before"]["loss"] == 0.5
    else:
        assert report["after"]["loss"] < report["before"]["loss"]
    assert json.loads((tmp_path / "report.json").read_text()) == report
    printed = capsys.readouterr().out
    assert report["checkpoint"] in printed
    assert (tmp_path / "checkpoints" / "4").is_dir()
    assert list(tmp_path.glob("**/*tfevents*"))
    if name in ("cogpo", "dpo"):
        assert lines[0]["loss"] == pytest.approx(np.log(2), abs=2e-6)
        assert report["before"]["loss"] == pytest.approx(np.log(2), abs=2e-6)
        for gap in ("small", "medium", "large"):
            assert f"accuracy/{gap}" in report["after"]
            assert f"margin/{gap}" in report["after"]
        assert {"reward_chosen", "reward_rejected", "margin", "accuracy", "kl"} <= lines[0].keys()
    if name.endswith("first"):
        assert {"nll_answer", "nll_rationale", "hardest_quarter_share", "spearman"} <= lines[-1].keys()


@pytest.mark.slow
def test_live_reference_gives_the_losses_of_the_cached_one(tmp_path):
    losses = {}
    for reference in ("cached", "live"):
        changes = {"objective.reference": reference, "data.eval": ""}
        train(smoke("cogpo", **changes), tmp_path / reference)
        losses[reference] = [line["loss"] for line in metrics(tmp_path / reference)]
    # Sums of hundreds of float32 log-probs, from two programs.
    np.testing.assert_allclose(losses["live"], losses["cached"], rtol=5e-5)


@pytest.mark.slow
def test_an_epoch_ends_the_run_and_a_set_smaller_than_a_batch_trains(tmp_path):
    changes = {"data.train_split": "train[:3]", "data.eval": "", "epochs": 2, "steps": 0, "batch.rows": 8}
    changes["freeze"] = "embed|layers"  # few gradients compile fast
    report = train(smoke("dpo", **changes), tmp_path)
    assert report["steps"] == 2
    assert report["after"] == {}


@pytest.mark.slow
def test_nan_stops_the_run_and_names_step_rows_and_checkpoint(tmp_path):
    changes = {"optimizer.learning_rate": 1e30, "optimizer.clip_norm": 0.0, "checkpoint.every": 1, "data.eval": ""}
    with pytest.raises(NonFiniteError) as error:
        train(smoke("sft", **changes), tmp_path)
    message = str(error.value)
    assert "step 2" in message
    assert "rows of builtin:arithmetic/sft in this step: [" in message
    assert f"step 1 in {tmp_path / 'checkpoints'}" in message
    assert not (tmp_path / "checkpoints" / "2").exists()


BAD_CONFIGS = [
    ({"model": "smollm2-135m-instruc"}, "smollm2-135m-instruct"),
    ({"model": "someone/some-model"}, "hub"),
    ({"batch.rows": 3, "batch.accumulation": 2}, "config.batch.rows=3"),
    ({"batch.row_length": 20}, "longer than 20 tokens"),
    ({"data.columns.chosen": "chosn"}, "chosn"),
    ({"data.train": "no/such/folder/rows.jsonl"}, "rows.jsonl"),
    ({"data.train_split": "trian"}, "trian"),
    ({"objective.beta.small": -0.1}, "config.objective.beta"),
    ({"objective.beta.large": float("nan")}, "config.objective.beta"),
    ({"objective.label_smoothing": 0.7}, "config.objective.label_smoothing"),
    ({"objective.reference": "cache"}, "config.objective.reference"),
    ({"objective.name": "cogpoo"}, "config.objective.name"),
    ({"optimizer.schedule": "cosin"}, "config.optimizer.schedule"),
    ({"epochs": 0, "steps": 0}, "config.epochs"),
    ({"compute.dtype": "float16"}, "dtype"),
    ({"compute.remat": "some"}, "remat"),
    ({"mesh.data": 3}, "config.mesh"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "words"), BAD_CONFIGS, ids=[" ".join(changes) for changes, _ in BAD_CONFIGS])
def test_bad_configs_stop_before_the_first_step(changes, words, tmp_path):
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        train(smoke("cogpo", **changes), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_typo_in_a_field_names_the_nearest():
    config = importlib.import_module("configs.cogpo").get_config()
    with pytest.raises(AttributeError, match="learning_rate"):
        config.optimizer.learnin_rate = 1.0


def test_an_unknown_config_argument_is_refused():
    with pytest.raises(UserError, match="smoke"):
        importlib.import_module("configs.cogpo").get_config("smok")


def test_batch_that_does_not_divide_over_the_mesh_names_what_would(monkeypatch):
    from smallr.training.checks import check_batch

    config = smoke("cogpo", **{"batch.rows": 6})

    class Mesh:
        shape: ClassVar = {"data": 2, "fsdp": 2, "tensor": 2}

    with pytest.raises(UserError, match=r"multiple of 4, e\.g\. 4 or 8"):
        check_batch(config, Mesh())
    assert jax.device_count() == 1
