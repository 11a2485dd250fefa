"""Every kind of objective has a run whose losses are pinned: those of `test_trainer.PINNED`, and two here."""

from __future__ import annotations

import math

import pytest

from smallr.config import ilql, outcome
from smallr.training.objective import OBJECTIVES
from smallr.training.opening import open_trained
from smallr.training.trainer import Trainer
from tests.training.test_trainer import PINNED, config_of, losses


def test_every_kind_is_pinned():
    assert {*PINNED, "ilql", "outcome"} == {*OBJECTIVES}


def rewarded(model: str) -> list[dict]:
    """Sums with a right and a wrong answer; the right one has 1 at its end."""
    tokenizer, rows = open_trained(model).tokenizer(), []
    for n in range(16):
        prompt, texts = f"{n} + 2 =", [f" {n + 2}", f" {n + 3}"][:: 1 if n % 2 else -1]
        lengths = [len(tokenizer(prompt + t)["input_ids"]) + 1 - len(tokenizer(prompt)["input_ids"]) for t in texts]
        rewards = [[0.0] * (m - 1) + [float(t == f" {n + 2}")] for m, t in zip(lengths, texts, strict=True)]
        rows.append({"prompt": prompt, "completions": texts, "reward": rewards})
    return rows


@pytest.mark.slow
def test_what_ilql_learns_is_what_it_learned(small_model, tmp_path):
    with Trainer(config_of(small_model, ilql(), **{"batch.scored": 0, "batch.examples": 0}), tmp_path) as trainer:
        trainer.load_data(rewarded(small_model))
        trainer.fit()
    found = losses(tmp_path)
    assert (found[0], found[-1]) == pytest.approx((0.2106704, 0.2098451), abs=2e-5)


@pytest.mark.slow
def test_what_an_outcome_reward_model_learns_is_what_it_learned(small_model, tmp_path):
    rows = [
        {"prompt": f"{n} + 2 =", "completions": [f" {n + 2}", f" {n + 3}"], "correct": [1.0, 0.0]} for n in range(16)
    ]
    with Trainer(config_of(small_model, outcome()), tmp_path) as trainer:
        trainer.load_data(rows)
        trainer.fit()
    found = losses(tmp_path)
    assert (found[0], found[-1]) == pytest.approx((math.log(2), 0.6930278), abs=2e-5)
