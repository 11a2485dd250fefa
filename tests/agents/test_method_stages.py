"""Stages that train and generate: one whole method of two rounds, and generation that is interrupted."""

from __future__ import annotations

import json

import pytest

from smallr.agents import method_stages
from smallr.agents.method_stages import MethodStages
from smallr.core.stages import Stopped
from tests.evals.fakes import FakeModel
from tests.runs import smoke

PROMPTS = [f"What is {number}?" for number in range(6)]


def generated(out, model: FakeModel, monkeypatch, *, round: int = 0, seed: int = 0) -> list[dict]:
    monkeypatch.setattr(method_stages, "open_language_model", lambda *_, **__: model)
    stages = MethodStages(out, seed=seed)
    stage = stages.generate("drafts", "m", PROMPTS, {"n": 2, "temperature": 0.5, "stop": ["\n"]}, round=round)
    stages.run()
    return stages.value(stage)


def test_an_interrupted_generation_asks_nothing_twice(tmp_path, monkeypatch):
    def answer(prompt: str) -> str:
        if "2" in prompt:
            raise ValueError("500: busy")
        if "4" in prompt:
            raise ValueError("400: too long")
        return prompt.upper()

    with pytest.raises(Stopped, match=r"1 prompts got no reply \(500: busy\)"):
        generated(tmp_path, FakeModel(answer), monkeypatch)
    model = FakeModel(str.upper)
    rows = generated(tmp_path, model, monkeypatch)
    assert [request.messages[0]["content"] for request in model.requests] == [PROMPTS[2]]
    assert rows[1] == {
        "prompt": PROMPTS[1], "completions": ["WHAT IS 1?"] * 2, "finish_reasons": ["stop"] * 2, "error": "",
    }  # fmt: skip
    assert (rows[4]["completions"], rows[4]["error"]) == ([], "400: too long")
    assert generated(tmp_path, FakeModel(str), monkeypatch) == rows


def test_samples_depend_on_seed_round_and_prompt(tmp_path, monkeypatch):
    def seeds(name: str, **options) -> list[int]:
        model = FakeModel(str)
        generated(tmp_path / name, model, monkeypatch, **options)
        assert {(request.params.n, request.params.stop) for request in model.requests} == {(2, ("\n",))}
        return sorted(request.params.seed for request in model.requests)

    first = seeds("a")
    assert len({*first, *seeds("b", round=1), *seeds("c", seed=1)}) == 18
    assert seeds("d") == first


def pairs_of(drafts: list[dict]) -> list[dict]:
    return [{"prompt": row["prompt"], "completion": f"It is {len(row['completions'][0])}."} for row in drafts]


@pytest.mark.slow
def test_a_method_of_two_rounds_goes_on_to_the_same_end(tmp_path):
    config = smoke("sft", **{"steps": 1, "epochs": 0, "eval_every": 0, "data.eval": ""})
    config.data.columns.prompt, config.data.columns.completion = "prompt", "completion"

    def method(rounds: int) -> list:
        stages = MethodStages(
            tmp_path, compute={"dtype": "float32", "decode_slots": 2, "max_length": 64, "cache": False}
        )
        student, drafts = config.model, []
        for round in range(rounds):
            drafts.append(stages.generate(f"drafts_{round}", student, PROMPTS[:2], {"max_tokens": 3}, round=round))
            pairs = stages.make(f"pairs_{round}", pairs_of, drafts[-1])
            student = stages.train(f"student_{round}", config, pairs, start=student)
        stages.run()
        return [stages.value(each) for each in (*drafts, student)]

    first = method(1)
    *_, folder = both = method(2)
    assert both[0] == first[0]
    assert json.loads((folder / "report.json").read_text())["finished"]
    assert json.loads((folder / "config.json").read_text())["config"]["model"] == str(first[1])
