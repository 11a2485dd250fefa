"""ILQL as an objective of the trainer: on a decoder with heads, over packed rows."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from smallr.config import finish, ilql
from smallr.core.errors import UserError
from smallr.data.batch import Completion, Example
from smallr.data.packing import RowShape
from smallr.data.pipeline import assemble
from smallr.losses.ilql import TokenValues
from smallr.models.heads import HeadOptions, attach_heads
from smallr.models.scratch import Size, train_tokenizer, write_scratch
from smallr.training.objectives.ilql import Ilql
from smallr.training.opening import open_trained
from smallr.training.trainer import Trainer
from tests.runs import metrics
from tests.tiny import decoder

REWARDED = Ilql(gamma=0.9, tau=0.8, conservative_weight=0.1)


def with_rewards(seed: int, count: int) -> list[Example]:
    """Examples of one to three completions whose tokens all have a reward."""
    rng = np.random.default_rng(seed)
    examples = []
    for row in range(count):
        completions = []
        for _ in range(int(rng.integers(1, 4))):
            length = int(rng.integers(2, 6))
            tokens = rng.integers(1, 60, length).astype(np.int32)
            rewards = rng.normal(size=length).astype(np.float32)
            completions.append(Completion(tokens, np.ones(length, np.int8), {}, {"reward": rewards}))
        examples.append(Example(rng.integers(1, 60, 4).astype(np.int32), tuple(completions), {}, row))
    return examples


@pytest.fixture(scope="module")
def model():
    """A tiny decoder with heads whose parameters are random, the target copy's others than the Q heads'."""
    graphdef, params = decoder()
    built = nnx.merge(graphdef, params)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
    attach_heads(built, HeadOptions(values=1, q=2, target=True), 0, mesh)
    graphdef, state = nnx.split(built)
    keys = iter(jax.random.split(jax.random.key(1), 100))
    leaves = [
        (path, leaf.replace(0.2 * jax.random.normal(next(keys), leaf.shape)) if path[0] == "heads" else leaf)
        for path, leaf in nnx.to_flat_state(state)
    ]
    return graphdef, nnx.from_flat_state(leaves)


def batch_of(rows, examples):
    """Returns a batch of three rows, some of which may be empty: always of one shape, so that a program is compiled once."""
    shape = RowShape(tokens=64, scored=40, examples=3, completions=3)
    return assemble([*rows, *[[]] * (3 - len(rows))], examples, shape, {})


@partial(jax.jit, static_argnums=(0, 3))
def _differentiated(graphdef, params, batch, forward):
    def loss(params):
        total, values = REWARDED(forward(nnx.merge(graphdef, params), batch, 7), batch, None)
        return total / REWARDED.denominator(batch), values

    return jax.value_and_grad(loss, has_aux=True)(params)


def loss_and_gradient(model, batch, forward=REWARDED.forward):
    (value, sums), gradient = _differentiated(*model, batch, forward)
    return value, sums, {path: np.asarray(leaf.get_value()) for path, leaf in nnx.to_flat_state(gradient)}


def dense(built, batch, chunk):
    """Computes all Q values of all tokens."""
    from smallr.training.forward import scored_states

    states = scored_states(built, batch)
    q, target_q = (getattr(built.heads, name).all_values(states) for name in ("q", "target_q"))
    pick = batch.target[None, ..., None]
    return TokenValues(
        jnp.take_along_axis(q, pick, axis=3)[..., 0],
        jax.nn.logsumexp(q, axis=3),
        lax.stop_gradient(jnp.take_along_axis(target_q, pick, axis=3)[..., 0]),
        built.heads.value(states)[0],
    )


@pytest.mark.slow
def test_the_walk_equals_a_dense_head_in_loss_and_gradients(model):
    examples = with_rewards(0, 5)
    batch = batch_of([[0, 1], [2, 3], [4]], examples)
    loss, _, gradient = loss_and_gradient(model, batch)
    expected, _, theirs = loss_and_gradient(model, batch, dense)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for path, value in theirs.items():
        np.testing.assert_allclose(gradient[path], value, atol=1e-5 * max(np.abs(value).max(), 1e-3), err_msg=path)
        assert (np.abs(value).max() > 0) == ("target_q" not in path and path[-1] != "table_bias")


@pytest.mark.slow
def test_packed_rows_equal_one_by_one_in_loss_and_gradients(model):
    examples = with_rewards(1, 4)
    batch = batch_of([[0, 1, 2], [3]], examples)
    packed = loss_and_gradient(model, batch)
    tokens, total, sums = 0.0, 0.0, None
    for index in range(4):
        alone = batch_of([[index]], examples)
        loss, _, gradient = loss_and_gradient(model, alone)
        count = float(REWARDED.denominator(alone))
        tokens, total = tokens + count, total + count * loss
        sums = {path: count * value + (sums[path] if sums else 0) for path, value in gradient.items()}
    np.testing.assert_allclose(packed[0], total / tokens, rtol=1e-6)
    for path, value in sums.items():
        np.testing.assert_allclose(packed[2][path], value / tokens, atol=2e-6 + 1e-5 * np.abs(value).max())


@pytest.mark.slow
def test_values_of_examples_add_up(model):
    examples = with_rewards(2, 3)
    batch = batch_of([[0, 1], [2]], examples)
    loss, sums, _ = loss_and_gradient(model, batch)
    assert float(np.sum(sums["denominator"])) == float(REWARDED.denominator(batch))
    np.testing.assert_allclose(np.sum(sums["loss"]) / np.sum(sums["denominator"]), loss, rtol=1e-6)
    summary = REWARDED.summariser()({name: np.asarray(value).ravel() for name, value in sums.items()}, {})
    mean = np.mean([reward for x in examples for c in x.completions for reward in c.token_columns["reward"]])
    assert summary["reward"] == pytest.approx(mean, abs=1e-6)
    parts = summary["loss_q"] + summary["loss_value"] + 0.1 * summary["loss_conservative"]
    assert parts == pytest.approx(float(loss), rel=1e-5)


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("words") / "model"
    write_scratch(folder, train_tokenizer(["good bad end"] * 4, 300), Size("llama", 1, 32, 2, 128), 0)
    return str(folder)


def config_of(model, **changes):
    config = ilql()
    config.model, config.compute.dtype, config.compute.remat = model, "float32", "none"
    config.data.chat, config.data.eval = False, ""
    config.batch.rows, config.batch.row_length = 8, 64
    config.epochs, config.steps, config.checkpoint.every = 0, 40, 40
    config.optimizer.schedule, config.optimizer.warmup = "constant", 0
    config.optimizer.groups.heads.learning_rate = 1e-2
    config.update_from_flattened_dict(changes)
    return finish(config, None)


def rows_for(model) -> list[dict]:
    """Half of the completions say "good", and have 1 at their end; the others have 0."""
    tokenizer = open_trained(model).tokenizer()
    rows = []
    for index in range(32):
        texts = [" good", " bad"][:: 1 if index % 2 else -1]
        lengths = [len(tokenizer("say" + text)["input_ids"]) + 1 - len(tokenizer("say")["input_ids"]) for text in texts]
        rewards = [[0.0] * (n - 1) + [float("good" in text)] for n, text in zip(lengths, texts, strict=True)]
        rows.append({"prompt": "say", "completions": texts, "reward": rewards})
    return rows


def fitted(config, rows, workdir) -> None:
    with Trainer(config, workdir) as trainer:
        trainer.set_data(rows)
        trainer.fit()


@pytest.mark.slow
def test_a_run_learns_that_one_word_is_better(words, tmp_path):
    fitted(config_of(words), rows_for(words), tmp_path)
    lines = metrics(tmp_path)
    assert lines[0]["q"] == pytest.approx(0, abs=1e-6), "fresh heads say 0"
    assert lines[-1]["loss_q"] < 0.25 * lines[0]["loss_q"]
    assert lines[-1]["reward"] == lines[0]["reward"] > 0
    assert {"loss_value", "loss_conservative", "value", "advantage"} <= lines[-1].keys()


@pytest.mark.parametrize(
    ("changes", "words_of_error"),
    [
        ({"data.token_columns": ()}, r"data\.token_columns=\('reward',\)"),
        ({"heads.q": 0, "heads.target": False}, r"config\.heads\.q=2"),
        ({"objective.gamma": 1.5}, r"objective\.gamma"),
        ({"objective.tau": 1.0}, r"objective\.tau"),
        ({"objective.conservative_weight": -1.0}, r"objective\.conservative_weight"),
    ],
)
def test_what_cannot_be_trained_is_refused(words, tmp_path, changes, words_of_error):
    with pytest.raises(UserError, match=words_of_error):
        fitted(config_of(words, **changes), rows_for(words), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
