"""smallr push: what is uploaded, and what is refused first."""

from __future__ import annotations

import json

import numpy as np
import pytest

from smallr.cli.main import main
from smallr.models.loading import open_model
from smallr.training.exporting import convert
from smallr.training.opening import load, loaded_params
from tests.hub import connect, running


@pytest.fixture
def hub(monkeypatch):
    with running() as server:
        connect(server, monkeypatch)
        yield server


def test_what_is_pushed_can_be_named_as_a_model(hub, tmp_path, monkeypatch, capsys):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert main(["push", "--model=tiny-random", "--repo=me/tiny", "--dtype=float32", "--private"]) == 0
    assert capsys.readouterr().out.startswith(f"{hub.endpoint}/me/tiny/commit/")
    assert hub.repos["me/tiny"].private
    assert hub.commits("me/tiny") == ["Upload tiny-random"]
    assert b"license: apache-2.0" in hub.repos["me/tiny"].files["README.md"]
    path = "layers.mlp.up"
    ours, theirs = (loaded_params(load(open_model(name)))(path) for name in ("tiny-random", "me/tiny"))
    np.testing.assert_array_equal(ours, theirs)
    assert open_model("me/tiny").tokenizer().chat_template == open_model("tiny-random").tokenizer().chat_template


def test_an_exported_folder_is_uploaded_as_it_is(hub, tmp_path, capsys):
    folder = tmp_path / "model"
    convert("tiny-random", folder)
    assert main(["push", f"--model={folder}", "--repo=me/tiny", "--revision=trial"]) == 0
    assert hub.repos["me/tiny"].branches["trial"] == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["push", f"--model={folder}", "--repo=me/tiny", "--dtype=float32"]) == 1
    assert "is exported already, and is uploaded as it is" in capsys.readouterr().err


def test_an_adapter_of_a_base_that_nobody_else_has_is_refused(hub, tmp_path, capsys):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").touch()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/models/base"}))
    assert main(["push", f"--model={folder}", "--repo=me/adapter"]) == 1
    assert "smallr push --model=/models/base --repo=OWNER/BASE" in capsys.readouterr().err
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"config": {"model": "tiny-random", "lora": {}}}))
    assert main(["push", f"--model={run}", "--repo=me/adapter", "--adapter_only"]) == 1
    assert "the adapters' base tiny-random is not on the hub" in capsys.readouterr().err
    assert hub.requests[-1][1].endswith("/auth-check/write")
