"""Heads in training: a small objective regresses values and Q values on rewards of tokens, run by the Trainer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from smallr.config import add_heads, add_lora, base, finish
from smallr.core.errors import UserError
from smallr.losses import head_scores
from smallr.models.heads import split_targets
from smallr.models.scratch import Size, train_tokenizer, write_scratch
from smallr.training import objective as objectives
from smallr.training.exporting import convert
from smallr.training.forward import scored_states
from smallr.training.objectives.base import Objective
from smallr.training.opening import open_trained
from smallr.training.policy import attach_saved_heads
from smallr.training.trainer import Trainer
from tests.runs import final_arrays, metrics

WORDS = ("red", "blue", "green", "one", "two", "three")


@dataclasses.dataclass(frozen=True)
class ValueRegression(Objective):
    """Mean over tokens of (V(h) - r)² + (Q(h, a) - r)², where the Q heads have a target copy also of its Q values."""

    any_completions = True

    def forward(self, decoder, batch, chunk):
        states = scored_states(decoder, batch)
        heads = {"v": decoder.heads.value(states)[0]}
        for name in ("q", "target_q"):
            if hasattr(decoder.heads, name):
                q = getattr(decoder.heads, name)
                heads[name] = head_scores(q.units(states), q.table[...], batch.target, chunk=chunk).logits[0]
        return heads

    def denominator(self, batch):
        return jnp.sum(batch.role > 0).astype(jnp.float32)

    def __call__(self, scores, batch, reference):
        reward, used = batch.token_columns["reward"], batch.role > 0
        error = sum(jnp.square(scores[name] - reward) for name in scores if name != "target_q")
        loss = jnp.sum(jnp.where(used, error, 0.0))
        per_row = jnp.sum(used, axis=1, keepdims=True) * jnp.ones(batch.example.shape)
        per_example = {"loss": jnp.zeros(batch.example.shape) + loss, "denominator": per_row}
        if "target_q" in scores:
            per_example["target"] = jnp.zeros(batch.example.shape) + jnp.sum(jnp.where(used, scores["target_q"], 0.0))
        return loss, per_example


@pytest.fixture(autouse=True)
def value_regression(monkeypatch):
    monkeypatch.setattr(objectives, "OBJECTIVES", {"value": lambda node: ValueRegression()})


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "model"
    write_scratch(folder, train_tokenizer([" ".join(WORDS)] * 4, 300), Size("llama", 2, 32, 2, 128), 0)
    return str(folder)


def rows_for(model) -> list[dict]:
    """Completions of words; a token's reward says whether it is of a colour, so that it can be learned from the state."""
    tokenizer = open_trained(model).tokenizer()
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(24):
        texts = [" " + " ".join(rng.choice(WORDS, 3)) for _ in range(int(rng.integers(1, 4)))]
        prompt = "say " + str(rng.choice(WORDS))
        lengths = [
            len(tokenizer(prompt + text)["input_ids"]) + 1 - len(tokenizer(prompt)["input_ids"]) for text in texts
        ]
        rewards = [[float(prompt.endswith(("red", "blue", "green")))] * length for length in lengths]
        rows.append({"prompt": prompt, "completions": texts, "reward": rewards})
    return rows


def config_of(model, *, q=0, lora=False, **changes) -> ConfigDict:
    config = add_heads(base(), values=1, q=q, learning_rate=1e-2)
    config.model, config.compute.dtype, config.compute.remat = model, "float32", "none"
    config.data.kind, config.data.token_columns = "completions", ("reward",)
    config.data.chat, config.data.eval = False, ""
    config.batch.rows, config.batch.row_length = 8, 96
    config.epochs, config.steps, config.checkpoint.every = 0, 4, 2
    config.optimizer.schedule, config.optimizer.warmup, config.optimizer.learning_rate = "constant", 0, 1e-4
    config.objective = ConfigDict({"name": "value"})
    if lora:
        add_lora(config, rank=2)
    config.update_from_flattened_dict(changes)
    return finish(config, None)


def trained(config, model, workdir, until=None) -> Trainer:
    with Trainer(config, workdir) as trainer:
        trainer.set_data(rows_for(model))
        trainer.fit(until=until)
    return trainer


@pytest.fixture(scope="module")
def with_q(model, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("with_q")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "OBJECTIVES", {"value": lambda node: ValueRegression()})
        trained(config_of(model, q=2, **{"heads.target_mixing": 0.25, "checkpoint.keep_last": 9}), model, workdir)
    return workdir


@pytest.mark.slow
def test_values_learn(model, tmp_path):
    changes = {"checkpoint.every": 60, "freeze": ".", "optimizer.groups.heads.learning_rate": 3e-2}
    trained(config_of(model, steps=60, **changes), model, tmp_path)
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert losses[0] > 0.3
    assert losses[-1] < 0.1


@pytest.mark.slow
def test_a_run_that_is_cut_goes_on_bit_for_bit(model, tmp_path, with_q):
    config = config_of(model, q=2, **{"heads.target_mixing": 0.25, "checkpoint.keep_last": 9})
    trained(config, model, tmp_path, until=2)
    trained(config, model, tmp_path)
    ours, theirs = final_arrays(tmp_path), final_arrays(with_q)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.mark.slow
def test_heads_have_their_learning_rate_and_target_copies_no_optimizer_state(with_q):
    arrays = final_arrays(with_q)
    moments = [name for name in arrays if "/mu/heads/" in name]
    assert moments
    assert all("inner_states/heads/" in name and "target_q" not in name for name in moments)
    assert np.any(arrays["params/heads/q/table"])


@pytest.mark.slow
def test_the_target_copy_is_the_polyak_average_of_the_steps(model, tmp_path):
    config = config_of(model, q=2, steps=3, **{"heads.target_mixing": 0.25, "checkpoint.every": 1})
    expected = 0.0
    with Trainer(config, tmp_path) as trainer:
        trainer.set_data(rows_for(model))
        for step in (1, 2, 3):
            trainer.fit(until=step)
            params = trainer.params if step < 3 else None
            if params is not None:
                expected = 0.75 * expected + 0.25 * np.asarray(params["heads"]["q"]["table"].get_value())
    arrays = final_arrays(tmp_path)
    expected = 0.75 * expected + 0.25 * arrays["params/heads/q/table"]
    np.testing.assert_allclose(arrays["params/heads/target_q/table"], expected, atol=1e-7)


@pytest.mark.slow
def test_with_adapters_only_adapters_and_heads_are_saved(model, tmp_path):
    trained(config_of(model, lora=True, steps=2), model, tmp_path)
    saved = {name for name in final_arrays(tmp_path) if name.startswith("params/")}
    assert all("/heads/" in name or "lora" in name for name in saved)
    assert any("/heads/" in name for name in saved)


@pytest.mark.slow
def test_heads_are_left_out_of_exports_and_found_again(model, tmp_path, with_q):
    message = convert(str(with_q), tmp_path / "out", dtype="float32", shard_size="5GB")
    assert "its heads (config.heads) are left out" in message
    from smallr.models.loading import load_decoder

    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    decoder = load_decoder(open_trained(str(tmp_path / "out")), mesh)
    assert not hasattr(decoder, "heads")
    attach_saved_heads(decoder, str(with_q), mesh)
    arrays = final_arrays(with_q)
    for path, leaf in nnx.to_flat_state(nnx.state(decoder.heads)):
        np.testing.assert_array_equal(leaf.get_value(), arrays["params/heads/" + "/".join(path)])
    trainer = Trainer(config_of(model, q=2, **{"heads.start": str(with_q)}), tmp_path / "next")
    with trainer:
        trainer.load()
        start = split_targets(trainer.params)[0]["heads"]["q"]["table"].get_value()
        np.testing.assert_array_equal(start, arrays["params/heads/q/table"])
    with (
        pytest.raises(UserError, match="make them equal"),
        Trainer(config_of(model, q=1, **{"heads.start": str(with_q)}), tmp_path / "other") as trainer,
    ):
        trainer.load()


def train_on_eight(model: str, workdir: str) -> None:
    """Runs in the process of eight devices."""
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    fields = {"heads.target_mixing": 0.25, "checkpoint.keep_last": 9, **mesh}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "OBJECTIVES", {"value": lambda node: ValueRegression()})
        trained(config_of(model, q=2, **fields), model, Path(workdir))


@pytest.mark.process
def test_eight_devices_equal_one(model, tmp_path, with_q, eight_devices):
    eight_devices(f"from tests.training import test_heads; test_heads.train_on_eight({model!r}, {str(tmp_path)!r})")
    ours, theirs = (np.asarray([line["loss"] for line in metrics(folder)]) for folder in (tmp_path, with_q))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    found, expected = final_arrays(tmp_path), final_arrays(with_q)
    for name in (name for name in expected if name.startswith("params/heads")):
        difference = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
        assert difference < 1e-3, (name, difference)


def test_heads_do_not_go_with_soft_prompts(model):
    from smallr.config import add_soft_prompts
    from smallr.training.policy import check_heads

    config = add_soft_prompts(add_heads(base()))
    with pytest.raises(UserError, match=r"config\.heads: with config\.soft"):
        check_heads(config)
