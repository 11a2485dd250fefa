"""Decoding with advantages: against a dense form of one row at a time, and on a task of which the optimum is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from smallr.api.model import load
from smallr.cli.main import main
from smallr.config import base, finish, ilql
from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.language.advantages import open_advantage
from smallr.language.loading import load_engine
from smallr.language.opening import open_language_model
from smallr.models.loading import load_decoder
from smallr.models.scratch import Size, train_tokenizer, write_scratch
from smallr.sampling.prompts import sample_key
from smallr.sampling.requests import Request, Result, SamplingParams
from smallr.training.opening import open_trained
from smallr.training.policy import attach_saved_heads
from smallr.training.trainer import Trainer
from tests.language.graphs import NODES, Graph

pytestmark = pytest.mark.slow
LENGTH = 24  # tokens of a row of the dense form
GREEDY = SamplingParams(max_tokens=12, logprobs=0)
DRAWN = SamplingParams(max_tokens=12, logprobs=0, temperature=0.7, seed=3, n=2)
BOTH = (GREEDY, DRAWN)


class Runs(NamedTuple):
    """A cloned policy, and values that were learned over it as it is, and over a trunk that learned with them."""

    graph: Graph
    model: str
    policy: str
    frozen: str
    trained: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    folder = tmp_path_factory.mktemp("graph")
    graph = Graph.drawn(0)
    rows = graph.walks(200, seed=1)
    names = Runs(graph, *(str(folder / name) for name in Runs._fields[1:]))
    write_scratch(Path(names.model), train_tokenizer(["zz zz"], 259), Size("llama", 1, 32, 2, 128), 0)
    cloning = base()
    cloning.objective = ConfigDict({"name": "sft", "normalisation": "token_mean"})
    cloning.optimizer.learning_rate = 1e-2
    fitted(cloning, names.model, 60, rows, names.policy)
    fitted(values(freeze="."), names.policy, 120, rows, names.frozen)
    fitted(values(), names.policy, 6, rows, names.trained)
    return names


def values(freeze="") -> ConfigDict:
    config = ilql()
    config.freeze, config.optimizer.learning_rate = freeze, 1e-3
    config.objective.gamma, config.objective.tau, config.objective.conservative_weight = 1.0, 0.95, 0.05
    config.heads.target_mixing, config.optimizer.groups.heads.learning_rate = 0.05, 1e-2
    return config


def fitted(config, model, steps, rows, workdir) -> None:
    config.model, config.compute.dtype, config.compute.remat = model, "float32", "none"
    config.data.kind, config.data.chat, config.data.eval = "completions", False, ""
    config.batch.rows, config.batch.row_length, config.batch.scored, config.batch.examples = 8, 96, 88, 24
    config.epochs, config.steps, config.checkpoint.every, config.log_every = 0, steps, steps, 20
    config.optimizer.schedule, config.optimizer.warmup = "constant", 0
    with Trainer(finish(config, None), workdir) as trainer:
        trainer.set_data(rows)
        trainer.fit()


def written(model, advantage="", beta=1.0, params=(GREEDY,)) -> list[Result]:
    """What one engine writes from each node; it has fewer slots than requests, so that slots are used again."""
    options = {"advantage": advantage, "beta": beta, "decode_slots": 4, "max_length": 64}
    engine = load_engine(model, dtype="float32", **options).engine
    asked = [Request(prompt=node, params=each) for each in params for node in NODES[1:]]
    return engine.generate(asked, progress=False)


def texts(results) -> list[str]:
    return [result.samples[0].text for result in results]


def tokens(results) -> list[list[tuple[int, ...]]]:
    return [[sample.token_ids for sample in result.samples] for result in results]


def logprobs(results) -> np.ndarray:
    return np.concatenate([[x.logprob for x in sample.logprobs] for result in results for sample in result.samples])


def test_the_policy_takes_shortest_paths_where_cloning_does_not(runs):
    best = runs.graph.distances()
    cloned = runs.graph.lengths(texts(written(runs.policy)))
    learnt = runs.graph.lengths(texts(written("", runs.frozen, 2.0)))
    assert np.mean(cloned == best) < 0.8
    np.testing.assert_array_equal(learnt, best)


class Dense:
    """Scores the next token of one row by log pi + beta (min Q - V), with V and the normaliser, and without a cache."""

    def __init__(self, policy: str, advantage: str, beta: float):
        mesh, self.beta = make_mesh(1, 1, 1), beta
        self.policy = load_decoder(open_trained(policy), mesh)
        self.critic = load_decoder(open_trained(advantage), mesh)
        attach_saved_heads(self.critic, advantage, mesh)

        @jax.jit
        def scores(ids):
            arguments = ids[None], jnp.arange(LENGTH)[None], jnp.full((1, LENGTH), LENGTH)
            log_pi = jax.nn.log_softmax(self.policy(*arguments)[0] @ self.policy.unembedding().T)
            hidden, heads = self.critic(*arguments), self.critic.heads
            advantage = heads.q.all_values(hidden).min(axis=0)[0] - heads.value(hidden)[0, 0][:, None]
            return log_pi, log_pi + beta * advantage

        self.scores = scores

    def write(self, prompt: list[int], params: SamplingParams, end: int, sample: int = 0):
        """Returns tokens and their log-probs under the policy; the draw is the engine's, its sum is float64."""
        ids, logps = list(prompt), []
        key = jax.random.wrap_key_data(sample_key(prompt, params.seed, 0, sample), impl="threefry2x32")
        for index in range(params.max_tokens):
            padded = np.zeros(LENGTH, np.int32)
            padded[: len(ids)] = ids
            log_pi, scores = (np.asarray(x[len(ids) - 1], np.float64) for x in self.scores(padded))
            token = int(scores.argmax())
            if params.temperature:
                shares = np.exp((scores - scores.max()) / params.temperature)
                uniform = float(jax.random.uniform(jax.random.fold_in(key, index)))
                token = int(np.searchsorted(np.cumsum(shares), uniform * shares.sum(), side="right"))
            ids.append(token)
            logps.append(log_pi[token])
            if token == end:
                break
        return tuple(ids[len(prompt) :]), logps


@pytest.mark.parametrize("trunk", ["frozen", "trained"])
def test_tokens_are_those_of_a_dense_form_one_row_at_a_time(runs, trunk):
    """A large beta, so that values of few steps of training matter too."""
    beta = {"frozen": 1.5, "trained": 60.0}[trunk]
    advantage = getattr(runs, trunk)
    dense = Dense(runs.policy, advantage, beta)
    tokenizer = open_trained(runs.policy).tokenizer()
    found, plain = written("", advantage, beta, BOTH), written(runs.policy, params=BOTH)
    expected = [
        [dense.write(tokenizer(node)["input_ids"], params, tokenizer.eos_token_id, n) for n in range(params.n)]
        for params in BOTH
        for node in NODES[1:]
    ]
    assert tokens(found) == [[ids for ids, _ in samples] for samples in expected]
    np.testing.assert_allclose(
        logprobs(found), np.concatenate([logps for samples in expected for _, logps in samples]), atol=2e-5
    )
    greedy, drawn = (tokens(found)[part] != tokens(plain)[part] for part in (slice(9), slice(9, None)))
    assert (greedy, drawn) == (True, True), "the values change what is written"


def test_beta_0_is_the_policy_to_the_bit(runs):
    plain = written(runs.policy, params=BOTH)
    for advantage in (runs.frozen, runs.trained):
        assert written("", advantage, 0.0, BOTH) == plain


def test_results_are_filed_by_run_and_beta(runs):
    found = [open_advantage(run, beta).identity for run in (runs.frozen, runs.trained) for beta in (1.0, 2.0)]
    assert len(set(found)) == 4
    assert open_advantage(runs.frozen, 0.0).identity == "", "those of the policy"


def test_another_policy_is_steered_through_the_runs_own_decoder(runs):
    """The untrained model as policy: heads of a frozen trunk read that trunk, not the policy's."""
    found = written(runs.model, runs.frozen, 2.0)
    dense = Dense(runs.model, runs.frozen, 2.0)
    tokenizer = open_trained(runs.policy).tokenizer()
    expected = [dense.write(tokenizer(node)["input_ids"], GREEDY, tokenizer.eos_token_id)[0] for node in NODES[1:]]
    assert tokens(found) == [[ids] for ids in expected]


def test_command_and_python_write_the_same(runs, capsys):
    expected = texts(written("", runs.frozen, 1.0))
    flags = ["--chat=false", "--dtype=float32", "--max_tokens=12", f"--advantage={runs.frozen}", "--beta=1"]
    assert main(["generate", "d", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["samples"][0]["text"] == expected[2]
    model = load(runs.policy, advantage=runs.frozen, beta=1.0)
    assert model.generate("d", chat=False, max_tokens=12) == expected[2]
    with open_language_model("local:", cache=False, dtype="float32", advantage=runs.frozen) as opened:
        (result,) = opened.complete_sync([Request(prompt="d", params=GREEDY)])
    assert texts([result]) == expected[2:3]


@pytest.mark.parametrize(
    ("model", "advantage", "beta", "message"),
    [
        ("", "frozen", -1.0, r"--beta: -1 must be a finite number >= 0"),
        ("", "frozen", float("nan"), r"--beta: nan must be"),
        ("", "policy", 1.0, r"--advantage: .*policy has no Q heads"),
        ("", "model", 1.0, r"--advantage: .*model is not the workdir of a run"),
        ("tiny-random", "frozen", 1.0, r"has values of 259 tokens, but the policy has 1280"),
        ("other", "frozen", 1.0, r"trained with another tokenizer than the policy's"),
    ],
)
def test_what_cannot_steer_is_refused(runs, model, advantage, beta, message, tmp_path):
    if model == "other":
        write_scratch(tmp_path / "other", train_tokenizer(["qq qq"], 259), Size("llama", 1, 32, 2, 128), 0)
        model = str(tmp_path / "other")
    with pytest.raises(UserError, match=message):
        load_engine(model, dtype="float32", advantage=getattr(runs, advantage), beta=beta)


def test_flags_that_have_no_effect_are_refused(runs, capsys):
    assert main(["generate", "d", "--model=tiny-random", "--beta=2"]) == 1
    assert "--beta: it has no effect without --advantage" in capsys.readouterr().err
    assert main(["generate", "d", f"--advantage={runs.frozen}", "--adaptive=x"]) == 1
    assert "--advantage: it does not go with --adaptive" in capsys.readouterr().err
