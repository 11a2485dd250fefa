"""The cost of an answer, by hand and through an evaluation."""

from __future__ import annotations

import math

import pytest

from smallr.evals.evaluation import evaluate
from smallr.evals.trust.cost import cells, cost, ratios
from smallr.language.base import Prices
from tests.evals.fakes import FakeModel
from tests.evals.test_evaluation import add, gsm8k


def record(prompt: int, tokens: int | None, sample: int = 0, output: str | None = "x", question: str = ""):
    name = question or f"{prompt} {tokens}"
    return {"id": name, "output": output, "prompt_tokens": prompt, "tokens": tokens, "sample": sample}


def test_money_is_tokens_at_their_prices_and_seconds_at_that_of_an_hour():
    records = [record(100, 10), record(200, 30), record(0, None, output=None)]
    found = cost(records, [1.0, 3.0, None], 2**21, Prices(2.0, 8.0), 3.6)
    assert found["money"] == pytest.approx(1000 * (150 * 2e-6 + 20 * 8e-6 + 2 * 3.6 / 3600))
    assert found["completion_tokens"] == {"value": 20, "half": pytest.approx(12.706 * math.sqrt(200 / 2), rel=1e-3)}
    assert (found["seconds"], found["model_bytes"]) == (2, 2**21)
    assert cells(found)[2:] == ["2", "2.0", "2.46"]
    free = cost(records, [], None, Prices(0, 0), 0)
    assert (free["money"], free["seconds"], free["model_bytes"]) == (None, None, None)
    assert (
        cost(records, [None], 0, Prices(0, 0), 1.0)["money"] is None
    )  # an hour has a price, and seconds are not known
    assert ratios(free, found)[:3] == ["× 1", "× 1", "–"]


def test_samples_of_a_question_are_one_to_the_interval():
    once = [record(100, 10, question="a"), record(200, 30, question="b")]
    thrice = [{**each, "sample": sample} for each in once for sample in range(3)]
    found = [cost(records, [], None, Prices(0, 0), 0) for records in (once, thrice)]
    assert found[0]["prompt_tokens"] == found[1]["prompt_tokens"]
    assert found[0]["completion_tokens"] == found[1]["completion_tokens"]


def test_seconds_are_of_one_sample():
    records = [record(10, 5, sample) for sample in (0, 1)]
    assert cost(records, [4.0], None, Prices(0, 0), 0)["seconds"] == 2


def test_an_evaluation_has_its_cost(tmp_path):
    config = gsm8k(tmp_path, cost__prices={"prompt": 1.0, "completion": 4.0}, cost__model_bytes=7)
    found = evaluate(config, tmp_path / "out", model=FakeModel(add))["cost"]
    assert found["completion_tokens"]["value"] == 4
    assert found["model_bytes"] == 7
    assert 0 < found["seconds"] < 1
    assert found["money"] == pytest.approx(1000 * (found["prompt_tokens"]["value"] * 1e-6 + 4 * 4e-6))
    again = evaluate(config, tmp_path / "out", model=FakeModel(add))["cost"]
    assert again == found  # answers are on disk with their seconds
