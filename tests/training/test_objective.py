"""Objectives on per-token scores of packed rows, against loops over tokens in float64."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.losses import TokenScores
from smallr.losses.preference import LOSSES
from smallr.training.objective import Likelihood, Preference, Unpaired, make_objective
from smallr.training.policy import ModelFunctions
from smallr.training.references import Reference, stored_columns
from smallr.training.splits import Split
from smallr.training.step import Constants, init_state, make_step
from tests.runs import smoke
from tests.tiny import BETAS, batch_of, columns_of, decoder, pairs, run_step

ROWS = [[0, 1, 2], [3, 4], [], [7, 5, 6]]
EIGHT = [*ROWS, [], [], [], []]  # as many rows as pairs, for the programs of pairs that are alone in their rows


def random_scores(batch, seed=0) -> TokenScores:
    """Per-token log-probs, zero in unused scored positions as `step.score` gives them."""
    rng = np.random.default_rng(seed)
    logps, log_sum_p2 = -rng.exponential(1.0, (2, *batch.role.shape)) * (batch.role > 0)
    return TokenScores(jnp.float32(logps), jnp.float32(log_sum_p2))


def tokens_of(batch, values, completion, example):
    """Values of the scored tokens of one completion, in order, float64."""
    r, p = (int(x[0]) for x in np.nonzero(batch.example == example))
    member = (batch.completion[r] == completion * batch.example.shape[1] + p) & (batch.role[r] > 0)
    return np.asarray(values, np.float64)[r][member]


def by_example(batch, values):
    real = np.asarray(batch.example) >= 0
    return dict(zip(np.asarray(batch.example)[real].tolist(), np.asarray(values)[real].tolist(), strict=True))


@pytest.fixture(scope="module")
def case():
    examples = pairs(8)
    columns = columns_of(examples)
    return examples, columns, batch_of(ROWS, examples, columns)


def logistic(x):
    return np.log1p(np.exp(-x))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_ld_dpo_weighs_tokens_behind_the_shared_length(case, alpha):
    _, columns, batch = case
    policy, reference = random_scores(batch, 1), random_scores(batch, 2)
    objective = Preference("sigmoid", BETAS, "live", ld_alpha=alpha)
    losses = by_example(batch, objective(policy, batch, reference)[1]["loss"])

    def summed(scores, completion, example):
        shared = min(len(tokens_of(batch, scores.logps, s, example)) for s in (0, 1))
        values = tokens_of(batch, scores.logps, completion, example)
        return values[:shared].sum() + alpha * values[shared:].sum()

    for example in range(8):
        ratios = [summed(policy, completion, example) - summed(reference, completion, example) for completion in (0, 1)]
        expected = logistic(columns["beta"][example] * (ratios[0] - ratios[1]))
        assert losses[example] == pytest.approx(expected, rel=1e-5)


def test_wpo_weighs_pairs_by_the_likelihood_of_both_sides_and_not_in_the_gradient(case):
    _, columns, batch = case
    policy = random_scores(batch, 1)
    objective = Preference("hinge", BETAS, weighting="wpo")
    losses = by_example(batch, objective(policy, batch, None)[1]["loss"])
    weights = {}
    for example in range(8):
        sums = [tokens_of(batch, policy.logps, completion, example).sum() for completion in (0, 1)]
        ratios = [sums[0] - columns["ref_chosen"][example], sums[1] - columns["ref_rejected"][example]]
        means = [
            tokens_of(batch, policy.logps - policy.log_sum_p2, completion, example).mean() for completion in (0, 1)
        ]
        weights[example] = np.exp(means[0]) * np.exp(means[1])
        margin = max(0, 1 - columns["beta"][example] * (ratios[0] - ratios[1]))
        assert losses[example] == pytest.approx(weights[example] * margin, rel=1e-5)
    gradient = jax.grad(lambda logps: objective(policy._replace(logps=logps), batch, None)[0])(policy.logps)
    active = [example for example in range(8) if losses[example] > 0]
    assert active
    for example in active:
        expected = -columns["beta"][example] * weights[example]
        np.testing.assert_allclose(tokens_of(batch, gradient, 0, example), expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_one_of_packed_rows(case, name):
    """Order and packing of pairs do not matter, whatever the loss."""
    examples, columns, _ = case
    results = []
    for rows in (EIGHT, [[i] for i in (4, 2, 7, 0, 1, 3, 6, 5)]):
        batch = batch_of(rows, examples, {**columns, "beta": np.full(8, 0.2, np.float32)})
        assert rows != EIGHT or not batch.columns["beta"].all(), "some example indices are unused"
        objective = Preference(name, 0.2 if LOSSES[name].beta else None)
        # The same number for a token wherever it stands.
        logps = -((batch.target * 7919 % 101) / 50.0) * (batch.role > 0)
        run = jax.value_and_grad(lambda x, o=objective, b=batch: o(TokenScores(x), b, None), has_aux=True)
        (total, values), gradient = run(jnp.float32(logps))
        assert np.all(np.isfinite(gradient))
        results.append((total, by_example(batch, values["loss"])))
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-5)
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)


def test_a_loss_without_reference_reports_the_kl_to_one(case):
    *_, batch = case
    scores = random_scores(batch)
    with_reference = Preference("simpo", BETAS, "cached")(scores, batch, None)
    without = Preference("simpo", BETAS, "none")(scores, batch, None)
    np.testing.assert_array_equal(with_reference[1]["loss"], without[1]["loss"])
    assert "ratio_chosen" in with_reference[1]
    assert "ratio_chosen" not in without[1]


def test_dpo_without_reference_compares_log_probs(case):
    _, columns, batch = case
    scores = random_scores(batch)
    losses = by_example(batch, Preference("sigmoid", BETAS, "none")(scores, batch, None)[1]["loss"])
    for example in range(8):
        h = np.subtract(*(tokens_of(batch, scores.logps, completion, example).sum() for completion in (0, 1)))
        assert losses[example] == pytest.approx(logistic(columns["beta"][example] * h), rel=1e-5)


def test_kto_by_the_formula(case):
    examples, columns, _ = case
    rng = np.random.default_rng(4)
    given = {"ref_completion": columns["ref_chosen"], "ref_mismatched": columns["ref_rejected"]}
    given |= {"label": np.float32(rng.integers(0, 2, 8)), "beta": np.full(8, 0.1, np.float32)}
    for shift in (-100.0, 5.0):  # a negative estimate of the KL counts as 0
        given["ref_mismatched"] = columns["ref_rejected"] * 0 - 5.0 - shift
        batch = batch_of(ROWS, examples, given)
        scores = random_scores(batch)
        objective = Unpaired(0.1, 1.5, 0.5)
        values = objective(scores, batch, None)[1]
        losses = by_example(batch, values["loss"])
        ratios = {i: [tokens_of(batch, scores.logps, completion, i).sum() for completion in (0, 1)] for i in range(8)}
        kl = max(0.0, np.mean([ratios[i][1] - given["ref_mismatched"][i] for i in range(8)]))
        np.testing.assert_allclose(np.unique(values["kl_estimate"]), kl, rtol=1e-5)
        assert (kl > 0) == (shift > 0)
        for i in range(8):
            z = 0.1 * (ratios[i][0] - columns["ref_chosen"][i] - kl)
            expected = 1.5 * (1 - 1 / (1 + np.exp(-z))) if given["label"][i] else 0.5 * (1 - 1 / (1 + np.exp(z)))
            assert losses[i] == pytest.approx(expected, rel=1e-5)
        gradient = jax.grad(lambda logps, o=objective, b=batch: o(TokenScores(logps), b, None)[0])(scores.logps)
        assert not any(tokens_of(batch, gradient, 1, i).any() for i in range(8)), "the KL estimate is a constant"
        assert all(tokens_of(batch, gradient, 0, i).all() for i in range(8))


@pytest.mark.slow
def test_wpo_runs_in_a_step_and_ignores_the_packing(case):
    """`log_sum_p2` comes out of the head; alone or packed, the weights are the same."""
    examples, columns, _ = case
    objective = Preference("sigmoid", BETAS, weighting="wpo")
    batch, single = (batch_of(rows, examples, columns) for rows in (EIGHT, [[i] for i in range(8)]))
    packed, alone = (run_step(b, objective) for b in (batch, single))
    np.testing.assert_allclose(packed.metrics["loss"], alone.metrics["loss"], rtol=1e-5)
    assert packed.metrics["loss"] != pytest.approx(run_step(batch, Preference("sigmoid", BETAS)).metrics["loss"])


@pytest.mark.slow
def test_the_reference_moves_towards_the_policy_when_it_is_due(case):
    *_, batch = case
    objective, moving = Preference("sigmoid", BETAS, "live"), Reference.moving(2, 0.6)
    mesh, optimizer, schedule = make_mesh(1, 1, 1), optax.sgd(0.1), optax.constant_schedule(0.1)
    graphdef, start = decoder()
    start_values = jax.tree.map(np.asarray, jax.tree.leaves(start))
    with jax.set_mesh(mesh):
        state, sharding = init_state(jax.tree.map(jnp.copy, start), optimizer, 0, mesh, moving)
        step = make_step(
            ModelFunctions(graphdef), objective, optimizer, schedule, sharding, mesh, chunk=7, reference=moving
        )
        constants = Constants.of()
        expected, losses = start_values, []
        for n in range(1, 5):
            state, metrics, _ = step(state, batch, constants)
            losses.append(float(metrics["loss"]))
            if n % 2 == 0:
                params = [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]
                expected = [0.4 * r + 0.6 * p for r, p in zip(expected, params, strict=True)]
            for ours, theirs in zip(jax.tree.leaves(state.reference), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert losses[0] == pytest.approx(np.log(2), rel=1e-6)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(expected, start_values, strict=True))


REFUSED = [
    (("cogpo:aot", {}), "beta of each gap has no meaning with the loss aot, since aot compares sorted values"),
    (("cogpo:orpo", {}), "the loss orpo has no beta"),
    (("cogpo:sft", {}), "has no beta"),
    (("cogpo:sigmoid+aot_unpaired", {}), "aot_unpaired compares sorted values"),
    (("preference:ipo", {"objective.beta": 0.0}), "divides by beta"),
    (("preference:aot", {"batch.accumulation": 2}), "compares the pairs of a whole step"),
    (("preference:bco_pair_shift", {"batch.accumulation": 2}), "batch.accumulation=1"),
    (("kto", {"batch.accumulation": 2}), "estimates the KL from all rows"),
    (("kto", {"objective.reference": "none"}), "KTO needs the reference"),
    (("kto", {"objective.undesirable_weight": -1.0}), "undesirable_weight"),
    (("preference:nca_pair", {"objective.divergence": "js"}), "nca_pair is no function of a difference"),
    (("preference:aot", {"objective.weighting": "wpo"}), "a weight of each pair has no meaning"),
    (("dpo", {"objective.weighting": "wpoo"}), "config.objective.weighting"),
    (("dpo", {"objective.ld_alpha": 1.5}), "config.objective.ld_alpha"),
    (("dpo", {"objective.ld_alpha": 0.5, "objective.reference": "columns"}), "columns hold sums"),
    (("dpo", {"objective.sync_every": 2}), "config.objective.reference=live"),
    (("dpo", {"objective.reference": "live", "objective.sync_every": 2, "objective.sync_mixing": 2.0}), "sync_mixing"),
    (("dpo", {"objective.loss": "simpo"}), "no field 'simpo_gamma', which loss simpo needs"),
    (("dpo", {"objective.loss": "hinge"}), "config.objective.label_smoothing: loss hinge has no such field"),
    (
        ("preference:robust", {"objective.label_smoothing": 0.5}),
        r"config.objective.label_smoothing: 0.5 is not in \[0, 0.5\)",
    ),
    (("preference:exo_pair", {"objective.label_smoothing": 0.0}), "config.objective.label_smoothing"),
    (("preference:discopop", {"objective.discopop_tau": 0.0}), "config.objective.discopop_tau"),
]


@pytest.mark.parametrize(("config", "words"), REFUSED, ids=[f"{name} {changes}" for (name, changes), _ in REFUSED])
def test_configs_that_have_no_meaning_are_refused_with_the_reason(config, words):
    name, changes = config
    with pytest.raises(UserError, match=words):
        make_objective(smoke(name, **changes))


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.beta and not loss.no_beta_per_pair])
def test_a_beta_per_gap_reaches_every_loss_that_has_a_beta(name):
    objective = make_objective(smoke(f"cogpo:{name}"))
    given = {"gap": np.array([0.0, 1.0, 2.0, 1.0]), "beta": np.array([np.nan, np.nan, np.nan, 0.7])}
    np.testing.assert_allclose(objective.columns(given)["beta"], [0.1, 0.2, 0.5, 0.7])


def test_stored_references_must_be_there_in_every_row():
    given = {}
    split = Split("train", SimpleNamespace(columns=given), None, {}, ("chosen", "rejected"))
    with pytest.raises(UserError, match=r"ref_chosen is missing.*`smallr score`"):
        stored_columns(split)
    given |= {"ref_chosen": np.array([-1.0, np.nan, -2.0]), "ref_rejected": np.array([-3.0, -4.0, -5.0])}
    with pytest.raises(UserError, match=r"ref_chosen: 1 examples have no number, e\.g\. \[1\]"):
        stored_columns(split)
    given["ref_chosen"][1] = -7
    np.testing.assert_array_equal(stored_columns(split).columns["ref_chosen"], [-1, -7, -2])


def test_objectives_that_look_at_one_example_at_a_time_accumulate():
    for objective in (Preference("mpo", 0.1), Likelihood(), Preference("cpo", 0.1, "none")):
        assert objective.whole_step == ""
    assert dataclasses.replace(Likelihood(), amplify=2.0).whole_step
