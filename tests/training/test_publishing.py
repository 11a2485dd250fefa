"""Folders for the Hugging Face ecosystem while training: what is in them, what is uploaded, what a failure does."""

from __future__ import annotations

import json
import re
import shlex
import threading
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from smallr.cli.main import main
from smallr.config import add_lora
from smallr.core.errors import UserError
from smallr.models.hub import HubRepo
from smallr.training import publishing
from smallr.training.exporting import convert
from smallr.training.trainer import Trainer
from tests.hub import TOKEN, Hub, connect, running
from tests.runs import final_arrays, smoke

FEW = {"data.eval": "", "data.train_split": "train[:8]", "eval_every": 0, "batch.row_length": 384}
FEW |= {"optimizer.schedule": "constant", "optimizer.warmup": 0}  # one program, however long the run
PUSHED = FEW | {"checkpoint.hf_every": 1, "checkpoint.push_to": "me/model"}


@pytest.fixture
def hub(monkeypatch):
    with running() as server:
        connect(server, monkeypatch)
        yield server


class Watched(Trainer):
    """Notes after each step what is on the hub, and lets uploads through when four folders are written."""

    def __init__(self, config, workdir, hub: Hub, gate: threading.Event):
        super().__init__(config, workdir)
        self.hub, self.gate, self.seen = hub, gate, []

    def take(self, batch):
        taken = super().take(batch)
        self.seen.append(len(self.hub.repos["me/model"].commits))
        if self.step == 5:
            self.publisher._writer.wait()
            self.gate.set()
        return taken


@pytest.mark.slow
def test_steps_go_on_while_an_upload_waits_and_the_newest_comes_next(hub, tmp_path, monkeypatch):
    gate, upload = threading.Event(), HubRepo.upload

    def held(repo, folder, message):
        assert gate.wait(240), "a step has waited for an upload"
        return upload(repo, folder, message)

    monkeypatch.setattr(HubRepo, "upload", held)
    config = smoke("sft", **PUSHED, **{"steps": 5, "checkpoint.every": 4, "checkpoint.push_private": True})
    with Watched(config, tmp_path / "run", hub, gate) as trainer:
        report = trainer.fit()
    assert trainer.seen == [0, 0, 0, 0, 0]
    commits = hub.commits()
    assert commits[0] == "step 1"
    assert commits[-1] == "step 5"
    assert not {"step 2", "step 3"} & set(commits), "an old folder is uploaded though a newer one waits"
    assert report["hf_folders"] == {"written": 5, "uploaded": len(commits), "failed": 0}
    assert hub.repos["me/model"].private
    folders = tmp_path / "run" / "hf"
    assert {path.name for path in folders.iterdir()} == {"step-4", "step-5"}
    assert hub.repos["me/model"].files == {path.name: path.read_bytes() for path in (folders / "step-5").iterdir()}
    assert "5 written" in (tmp_path / "run" / "report.txt").read_text()

    # A folder is what `smallr convert` makes of the checkpoint of its step.
    convert(str(tmp_path / "run" / "checkpoints" / "4"), tmp_path / "model", title="model")
    for path in (folders / "step-4").iterdir():
        assert path.read_bytes() == (tmp_path / "model" / path.name).read_bytes(), path.name
    assert str(tmp_path) not in (folders / "step-5" / "README.md").read_text()


@pytest.mark.slow
def test_an_upload_that_fails_is_tried_again_and_never_ends_a_run(hub, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setattr(publishing, "RETRY_SECONDS", (0.0, 0.0))
    hub.failures += [503, 503]
    workdir = tmp_path / "run"
    config = smoke("sft", **FEW, **{"steps": 1, "checkpoint.push_to": "me/model"})
    with Trainer(config, workdir) as trainer:
        assert trainer.fit()["hf_folders"] == {"written": 1, "uploaded": 1, "failed": 0}
    assert caplog.text.count("next try in 0 s") == 2
    assert hub.commits() == ["step 1"]

    hub.failures += [503, 503, 503, 403]
    for steps, said in ((2, "503"), (3, "may not write to me/model")):
        caplog.clear()
        config.steps = steps
        with Trainer(config, workdir) as trainer:
            report = trainer.fit()
        assert (report["steps"], report["hf_folders"]["failed"]) == (steps, 1)
        assert said in caplog.text
        assert "1 failed" in (workdir / "report.txt").read_text()
    assert caplog.text.count("next try") == 0, "what the hub refuses is not tried again"
    assert not hub.failures

    command = re.search(r"to upload it: smallr (push .*)", caplog.text)[1]
    capsys.readouterr()
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out.startswith(f"{hub.endpoint}/me/model/commit/")
    assert hub.commits() == ["step 1", "Upload step-3"]
    # The run itself: exported, then uploaded.
    assert main(["push", f"--model={workdir}", "--repo=me/run", "--dtype=float32", "--message=mine"]) == 0
    assert hub.commits("me/run") == ["mine"]
    (tmp_path / "back.safetensors").write_bytes(hub.repos["me/run"].files["model.safetensors"])
    embed = load_file(tmp_path / "back.safetensors")["model.embed_tokens.weight"]
    assert (embed == final_arrays(workdir)[embedding(workdir)]).all()
    assert b"# run" in hub.repos["me/run"].files["README.md"]


def content(path) -> tuple:
    """Metadata and tensors of a file."""
    with safe_open(path, framework="numpy") as file:
        return file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def embedding(workdir) -> str:
    """The name of the embedding in a checkpoint."""
    return next(name for name in final_arrays(workdir) if name.startswith("params/") and "embed" in name)


@pytest.mark.slow
def test_a_lora_run_writes_adapters(hub, tmp_path):
    base = tmp_path / "base"
    convert("tiny-random", base, dtype="float32")
    fields = FEW | {"model": str(base), "steps": 1, "checkpoint.hf_every": 1}
    config = smoke("sft", **fields)
    with config.unlocked():
        add_lora(config, rank=4)
    with Trainer(config, tmp_path / "run") as trainer:
        trainer.fit()
    folder = tmp_path / "run" / "hf" / "step-1"
    convert(str(tmp_path / "run"), tmp_path / "adapter", adapter_only=True, title="run")
    for path in folder.iterdir():  # safetensors writes metadata in any order
        read = content if path.suffix == ".safetensors" else Path.read_bytes
        assert read(path) == read(tmp_path / "adapter" / path.name), path.name
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        ("sft", {"checkpoint.hf_every": -1}, "config.checkpoint.hf_every=-1 must be at least 0"),
        ("cogpo_lora", {"checkpoint.hf_every": 1}, "smallr convert --from=tiny-random --to=FOLDER --dtype=float32"),
        ("adaptive.prompts", {"checkpoint.hf_every": 1}, "soft prompts are exported at the end"),
    ],
)
def test_what_could_not_be_written_is_refused_at_the_start(hub, tmp_path, config, fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Trainer(smoke(config, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_adapters_whose_base_nobody_else_has_are_not_uploaded(hub, tmp_path):
    convert("tiny-random", tmp_path / "base", dtype="float32")
    fields = {"checkpoint.push_to": "me/model", "model": str(tmp_path / "base")}
    with pytest.raises(UserError, match=r"base is not on the hub.* \(smallr push --model="):
        Trainer(smoke("cogpo_lora", **fields), tmp_path / "run")
    assert not hub.repos


@pytest.mark.parametrize(
    ("token", "offline", "message"),
    [(None, False, "there is no token"), (TOKEN, True, "HF_HUB_OFFLINE is set"), ("hf_old", False, "does not know")],
)
def test_a_hub_that_cannot_be_written_to_is_one_line_at_the_start(
    hub, tmp_path, monkeypatch, capsys, token, offline, message
):
    from huggingface_hub import constants

    connect(hub, monkeypatch, token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    argv = ["train", "sft:smoke", f"--workdir={tmp_path / 'run'}", "--config.checkpoint.push_to=me/model"]
    assert main(argv) == 1
    found = capsys.readouterr()
    loading, error = found.err.splitlines()
    assert loading.endswith("loading JAX …")
    assert (found.out, message in error) == ("", True)
    assert not (tmp_path / "run").exists()
