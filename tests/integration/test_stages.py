"""One run after another: what a run left is the model of the next, as if it had been converted in between."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from smallr.core.errors import UserError
from smallr.training.exporting import convert
from smallr.training.opening import open_trained
from tests.runs import final_arrays, metrics, smoke, train

pytestmark = pytest.mark.slow

FIRST = {"data.eval": "", "data.train_split": "train[:48]", "steps": 2, "optimizer.learning_rate": 0.01}
NEXT = {**FIRST, "steps": 3}


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("sft")
    train(smoke("sft", **FIRST), workdir)
    return workdir


@pytest.fixture(scope="module")
def lora(tmp_path_factory, sft) -> Path:
    """Adapters on the run `sft`."""
    workdir = tmp_path_factory.mktemp("lora")
    train(smoke("cogpo_lora", **NEXT, model=str(sft)), workdir)
    return workdir


@pytest.fixture(scope="module")
def cogpo(tmp_path_factory, lora) -> Path:
    """All parameters, after adapters, after all parameters."""
    workdir = tmp_path_factory.mktemp("cogpo")
    train(smoke("cogpo", **NEXT, model=str(lora), **{"checkpoint.every": 2, "objective.reference": "live"}), workdir)
    return workdir


@pytest.mark.parametrize(("config", "start"), [("cogpo_lora", "sft"), ("cogpo", "lora")])
def test_a_run_starts_from_another_as_from_its_export(tmp_path, request, config, start):
    before, after = request.getfixturevalue(start), request.getfixturevalue(config.removeprefix("cogpo_"))
    convert(str(before), tmp_path / "exported", dtype="float32", shard_size="5GB")
    live = {} if config == "cogpo_lora" else {"objective.reference": "live"}
    train(smoke(config, **NEXT, **live, model=str(tmp_path / "exported")), tmp_path / "run")
    assert metrics(after)[0]["loss"] == pytest.approx(np.log(2), abs=2e-6)
    expected = final_arrays(tmp_path / "run")
    found = final_arrays(after)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_chain_of_runs_is_exported_whole(tmp_path, cogpo, sft):
    message = convert(str(cogpo), tmp_path / "out", dtype="float32", shard_size="5GB")
    assert "step 3" in message
    read = open_trained(str(cogpo)).open_parameters()
    exported = open_trained(str(tmp_path / "out")).make_reader()
    table = exported.read("model.embed_tokens.weight", (slice(None), slice(None)))
    np.testing.assert_array_equal(table, read("embed.table"))
    assert not np.array_equal(table, open_trained(str(sft)).open_parameters()("embed.table"))


def test_a_reference_that_has_changed_is_found_on_resuming(tmp_path, cogpo, sft):
    """As when the run that was the model went on in between."""
    shutil.copytree(cogpo, tmp_path / "cogpo")
    shutil.rmtree(tmp_path / "cogpo" / "checkpoints" / "3")
    changed = smoke("cogpo", **NEXT, model=str(sft), **{"checkpoint.every": 2, "objective.reference": "live"})
    saved = json.loads((cogpo / "config.json").read_text())
    saved["config"]["model"] = str(sft)
    (tmp_path / "cogpo" / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="has changed: its weights, the reference"):
        train(changed, tmp_path / "cogpo")


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run: the run has no checkpoint yet"):
        train(smoke("sft", **FIRST, model=str(tmp_path / "run")), tmp_path / "next")
