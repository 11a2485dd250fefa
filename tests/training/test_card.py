"""Model cards: licence, base model, data and metrics, and nothing of this machine."""

from __future__ import annotations

import dataclasses
import json

import pytest
from huggingface_hub import ModelCard

from smallr.models.loading import open_model
from smallr.training.card import Training, adapter_card, hub_base, model_card, without_paths
from tests.runs import smoke

EVAL = {"split": "eval", "loss": 0.5, "accuracy": 0.75, "accuracy/small": 0.7, "other/part": 1.0}


def training(tmp_path, step: int = 4, before=None, **fields) -> Training:
    lines = [{"step": 2, "split": "train", "loss": 0.9}, {"step": 4, **EVAL}]
    lines += [{"step": 4, "split": "benchmark", "accuracy": 0.25}, {"step": 6, "split": "train", "loss": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Training.at(tmp_path, smoke("sft", **fields).to_dict(), step, before or {})


def card(*arguments, **options) -> ModelCard:
    return ModelCard(model_card(*arguments, **options))


def test_metrics_are_those_of_the_step(tmp_path):
    fields = {"benchmark.name": "gsm8k"}
    shown = card("m", open_model("tiny-random"), "bfloat16", training(tmp_path, **fields)).text
    assert "Held-out examples at step 4:\n\n| metric | value |\n|---|---|\n| loss | 0.5000 |" in shown
    assert "Benchmark gsm8k at step 4:\n\n| metric | value |\n|---|---|\n| accuracy | 0.2500 |" in shown
    assert "last logged step 2: loss 0.9" in shown
    assert "other/part" not in shown
    shown = card("m", open_model("tiny-random"), "bfloat16", training(tmp_path, before={"loss": 1.5})).text
    assert "| metric | before | after |\n|---|---|---|\n| loss | 1.5000 | 0.5000 |\n\n" in shown
    assert "Held-out" not in card("m", open_model("tiny-random"), "bfloat16", training(tmp_path, step=5)).text


def test_licence_base_and_data_are_in_the_front_matter(tmp_path):
    source = dataclasses.replace(open_model("tiny-random"), license="Apache-2.0")
    fields = {"model": "smollm2-135m-instruct", "data.train": "openai/gsm8k"}
    found = card("mine", source, "bfloat16", training(tmp_path, **fields)).data.to_dict()
    assert found == {
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "datasets": ["openai/gsm8k"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["smallr"],
    }


def test_adapters_name_the_base_that_peft_loads(tmp_path):
    given = training(tmp_path, model="smollm2-135m-instruct")
    for base, shown in (("me/base", "me/base"), ("/local/base", "HuggingFaceTB/SmolLM2-135M-Instruct")):
        found = ModelCard(adapter_card("m", open_model("tiny-random"), "bfloat16", given, base))
        assert (found.data.base_model, found.data.library_name) == (shown, "peft")
        assert "/local" not in found.text


def test_licence_and_base_are_handed_on_by_exports_and_runs(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(open_model("tiny-random").hf))
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: ours\nbase_model: them/model\n---\n")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"config": {"model": str(folder)}}))
    assert hub_base(str(folder)) == hub_base(str(run)) == "them/model"
    assert hub_base("them/other") == "them/other"
    assert hub_base("tiny-random") == ""
    data = card("m", open_model(str(folder)), "bfloat16", training(tmp_path, model=str(run))).data
    assert (data.license, data.license_name, data.base_model) == ("other", "ours", "them/model")
    (folder / "README.md").write_text("---\n: [\n---\n")
    text = model_card("m", open_model(str(folder)), "bfloat16", None)
    assert "licence of the base model is not known" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("title", ["`base` trained with", "# m"])
def test_no_path_of_this_machine_is_shown(tmp_path, title):
    rows, base = tmp_path / "rows.jsonl", tmp_path / "base"
    rows.touch()
    source = dataclasses.replace(open_model("tiny-random"), name=str(base))
    fields = {
        "model": str(base),
        "data.train": str(rows),
        "tokenizer": "../there/tokenizer",
        "benchmark.data": "~/b.csv",
    }
    text = model_card("m", source, "bfloat16", training(tmp_path, **fields))
    assert title in text
    assert "- data: `rows.jsonl`" in text
    for word in (str(tmp_path), "there", "~"):
        assert word not in text


def test_what_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    kept = [
        "openai/gsm8k",
        "builtin:arithmetic/sft",
        "http://host/v1",
        "a/b|c",
        "text with a / in it",
        "x" * 5000 + "/",
    ]
    assert without_paths({"a": kept}) == {"a": kept}
    assert without_paths(["runs/sft", "data/rows.jsonl.gz", "/data/set", "a/model.gguf", 3]) == [
        "sft",
        "rows.jsonl.gz",
        "set",
        "model.gguf",
        3,
    ]
