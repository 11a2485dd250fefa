"""The invariants of the step: one batch, many layouts, one result."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from smallr.core.sharding import make_mesh
from smallr.data.packing import RowShape
from smallr.data.pipeline import assemble
from smallr.training.objective import Likelihood, Preference
from tests import tiny
from tests.tiny import CONFIG, batch_of, columns_of, decoder, pairs, preference, rationale_examples, run_step


def assert_same(ours, theirs, rtol=1e-4):
    """Each gradient, relative to the largest entry of its parameter's gradient."""
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = np.abs(value).max()
        assert scale > 0, f"{name} has no gradient: the comparison would show nothing"
        np.testing.assert_allclose(ours[name] / scale, value / scale, atol=rtol, err_msg=name)


def by_example(examples, name):
    """Values of a step by the index of their example, without the unused indices of a batch."""
    real = examples["example"] >= 0
    return dict(zip(examples["example"][real].tolist(), examples[name][real].tolist(), strict=True))


# Eight rows, as where every pair is alone in its row: one program.
PACKED = [[0, 1, 2], [3, 4], [5, 6], [7], [], [], [], []]


@pytest.fixture(scope="module")
def case():
    examples = pairs(8)
    return examples, columns_of(examples)


@pytest.fixture(scope="module")
def padded(case):
    """Every pair alone in its row, the prompt stored twice."""
    batch = batch_of([[i] for i in range(8)], *case, share_prompt=False)
    return run_step(batch, preference())


@pytest.mark.parametrize("share_prompt", [True, False])
@pytest.mark.parametrize("rows", [PACKED, [[7, 3], [], [5, 1, 0], [], [], [6, 2, 4], [], []]])
def test_packed_and_shared_equals_padded_one_by_one(case, padded, rows, share_prompt):
    batch = batch_of(rows, *case, share_prompt=share_prompt)
    metrics, examples, gradient, _ = run_step(batch, preference())
    np.testing.assert_allclose(metrics["loss"], padded.metrics["loss"], rtol=1e-5)
    for name in ("loss", "logp_chosen", "logp_rejected", "reward_chosen"):
        ours, theirs = by_example(examples, name), by_example(padded.examples, name)
        assert len(theirs) == 8
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert_same(gradient, padded.gradient)


@pytest.mark.slow
def test_four_micro_batches_of_two_rows_equal_eight_rows(case, padded):
    batch = batch_of([[i] for i in range(8)], *case)
    metrics, examples, gradient, _ = run_step(batch, preference(), accumulation=4)
    np.testing.assert_allclose(metrics["loss"], padded.metrics["loss"], rtol=1e-5)
    np.testing.assert_array_equal(examples["example"][examples["example"] >= 0], np.arange(8))
    assert_same(gradient, padded.gradient)


@pytest.mark.slow
def test_micro_batches_with_different_numbers_of_pairs_weigh_pairs_alike(case, padded):
    """Four pairs, one, three and none, in two rows each."""
    batch = batch_of([[0, 1, 2], [3], [4], [], [5], [6, 7], [], []], *case)
    assert_same(run_step(batch, preference(), accumulation=4).gradient, padded.gradient)


def test_loss_starts_at_ln_2_with_a_live_reference(case):
    batch = batch_of(PACKED, *case)
    _, params = decoder()
    metrics, examples, *_ = run_step(batch, preference("live"), reference=params)
    np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(examples["reward_chosen"], 0)


@pytest.mark.slow
def test_live_reference_equals_the_same_values_as_columns(case):
    examples, columns = case
    _, reference = decoder(seed=5)
    batch = batch_of(PACKED, examples, columns)
    live = run_step(batch, preference("live"), reference=reference)
    logps = run_step(batch, preference(), params=reference).examples
    real = logps["example"] >= 0
    order = np.argsort(logps["example"][real])
    cached = {f"ref_{name}": logps[f"logp_{name}"][real][order] for name in ("chosen", "rejected")}
    batch = batch_of(PACKED, examples, {**columns, **cached})
    stored = run_step(batch, preference())
    np.testing.assert_allclose(stored.metrics["loss"], live.metrics["loss"], rtol=1e-6)
    assert_same(stored.gradient, live.gradient, rtol=1e-6)


@pytest.mark.slow
def test_equal_betas_are_dpo(case):
    examples, columns = case
    batch = batch_of(PACKED, examples, {**columns, "beta": np.full(8, 0.1, np.float32)})
    dpo, cogpo = Preference("sigmoid", 0.1), Preference("sigmoid", (0.1, 0.1, 0.1))
    given = {name: np.asarray([e.columns[name] for e in examples], np.float32) for name in ("gap", "beta")}
    np.testing.assert_array_equal(dpo.columns(given)["beta"], cogpo.columns(given)["beta"])
    np.testing.assert_allclose(run_step(batch, dpo).metrics["loss"], run_step(batch, cogpo).metrics["loss"], rtol=1e-7)


@pytest.mark.slow
def test_pairs_count_the_same_in_full_steps_and_in_those_of_few_pairs(case):
    """By epoch, the gradients of two steps add up to that of all their pairs; by step, a pair alone counts double."""
    examples, columns = case
    shape = RowShape(tokens=128, scored=64, examples=4)  # that of `batch_of`

    def gradient(rows, rule):
        objective = dataclasses.replace(preference(), normalise=rule)
        batch = assemble([*rows, *[[]] * 7], examples, shape, columns)
        outcome = run_step(batch, objective, denominator=1.5)
        return outcome.gradient, float(outcome.metrics["loss"])

    (whole, loss), (two, loss_of_two), (one, loss_of_one) = (
        gradient(rows, "epoch") for rows in ([[0, 1, 2]], [[0, 1]], [[2]])
    )
    assert_same({name: two[name] + one[name] for name in whole}, whole)
    by_step, same_loss = gradient([[2]], "step")
    assert_same({name: value * 1.5 for name, value in one.items()}, by_step)
    assert loss_of_one == pytest.approx(same_loss, rel=1e-6), "what is logged is a mean over the step's pairs"
    assert loss == pytest.approx((2 * loss_of_two + loss_of_one) / 3, rel=1e-5)


@pytest.mark.slow
def test_a_pair_with_beta_zero_changes_nothing_but_the_mean(case):
    examples, columns = case
    beta = columns["beta"].copy()
    beta[3:] = 0
    without = run_step(batch_of([[0, 1, 2], *[[]] * 7], examples, columns), preference()).gradient
    batch = batch_of(PACKED, examples, {**columns, "beta": beta})
    with_zeros = run_step(batch, preference())
    assert_same({name: value * 8 / 3 for name, value in with_zeros.gradient.items()}, without)
    zeros = with_zeros.examples["loss"][with_zeros.examples["example"] >= 3]
    assert zeros == pytest.approx(np.full(5, np.log(2)))


@pytest.mark.slow
@pytest.mark.parametrize("normalisation", ["sum", "token_mean", "sample_mean"])
def test_rationale_loss_packed_equals_one_by_one_and_accumulated(normalisation):
    examples = rationale_examples(6)
    objective = Likelihood(2.0, 0.5, normalisation)
    single = batch_of([[i] for i in range(6)], examples, {})
    packed = batch_of([[0, 1, 2, 3], [4, 5], [], [], [], []], examples, {})  # as many rows: one program
    run_step = functools.partial(tiny.run_step, config=dataclasses.replace(CONFIG, remat="none"))  # six programs
    alone, together = run_step(single, objective), run_step(packed, objective)
    np.testing.assert_allclose(alone.metrics["loss"], together.metrics["loss"], rtol=1e-5)
    assert_same(together.gradient, alone.gradient)
    assert_same(run_step(single, objective, accumulation=3).gradient, alone.gradient)


@pytest.mark.slow
def test_state_counts_steps_and_tokens_are_real_ones(case):
    batch = batch_of([[0, 1, 2], [3, 4], *[[]] * 6], *case)
    outcome = run_step(batch, preference(), steps=3)
    assert int(outcome.state.step) == 3
    assert outcome.metrics["tokens"] == sum(
        len(e.prefix) + sum(len(b.tokens) for b in e.completions) for e in case[0][:5]
    )


def test_gradient_norm_is_that_of_the_gradient(case):
    batch = batch_of([[0, 1, 2], *[[]] * 7], *case)
    outcome = run_step(batch, preference())
    norm = np.sqrt(sum((value**2).sum() for value in outcome.gradient.values()))
    np.testing.assert_allclose(outcome.metrics["grad_norm"], norm, rtol=1e-4)


def test_scores_do_not_depend_on_the_chunk_of_the_head(case):
    from flax import nnx

    from smallr.training.forward import score

    graphdef, params = decoder()
    batch = batch_of([[0, 1, 2], [3, 4]], *case)

    @functools.partial(jax.jit, static_argnums=1)
    def logps(params, chunk):
        return score(nnx.merge(graphdef, params), batch, chunk).logps

    with jax.set_mesh(make_mesh(1, 1, 1)):
        np.testing.assert_allclose(logps(params, 1), logps(params, 1000), atol=2e-6)
