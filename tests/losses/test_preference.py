"""Every loss of the family against float64 formulas, their limits, and any log-probs at all."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallr.core.errors import UserError
from smallr.losses.preference import LOSSES, RECIPES, Divergence, Pairs, parse
from tests.losses.formulas import formula, gradient, random_pairs

SMOOTHED = ("sigmoid", "sigmoid_norm", "robust", "exo_pair", "aot", "aot_unpaired", "simpo", "cpo_prefer")
CASES = [(name, {}) for name in LOSSES] + [(name, {"label_smoothing": 0.1}) for name in SMOOTHED]
DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha:0.5")


def values_of(expression, **given):
    return {name: field.default for name, field in parse(expression).fields.items()} | given


def run(expression, pairs, divergence="reverse_kl", **given):
    mix = parse(expression)
    pairs = jax.tree.map(jnp.float32, pairs)
    # Fields choose between formulas (smoothing or none), so they are constants of the program.
    values = values_of(expression, **given)
    link = Divergence.parse(divergence)

    def total(chosen, rejected):
        own = pairs._replace(chosen=chosen, rejected=rejected)
        losses = mix(own, values, None if link.is_default else link.scored(own))
        return jnp.sum(losses * pairs.weight), losses

    (_, losses), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(pairs.chosen, pairs.rejected)
    return np.asarray(losses), dict(zip(("chosen", "rejected"), map(np.asarray, gradients), strict=True))


@pytest.mark.parametrize(("name", "given"), CASES, ids=[f"{n}{'-smoothed' if g else ''}" for n, g in CASES])
def test_value_and_gradient_are_those_of_the_paper(name, given):
    pairs = random_pairs()
    values = values_of(name, **given)
    ours, gradients = run(name, pairs, **given)
    np.testing.assert_allclose(ours, formula(name, pairs, **values), rtol=2e-4, atol=2e-6)

    def with_fixed_shift(p):  # the published shift is a constant
        if name != "bco_pair_shift":
            return formula(name, p, **values)
        shift = (pairs.beta * (pairs.ratio_chosen + pairs.ratio_rejected) / 2).mean()
        z = p.beta * p.ratio_chosen - shift, p.beta * p.ratio_rejected - shift
        return np.log1p(np.exp(-z[0])) + np.log1p(np.exp(z[1]))

    for field, value in gradient(with_fixed_shift, pairs).items():
        np.testing.assert_allclose(gradients[field], value, rtol=1e-3, atol=1e-6, err_msg=field)


SCORES = {
    "forward_kl": lambda ratio: 1 - 1 / np.exp(ratio),
    "js": lambda ratio: np.log(2 * np.exp(ratio) / (1 + np.exp(ratio))),
    "alpha:0.5": lambda ratio: (1 - np.exp(ratio) ** -0.5) / 0.5,
    "alpha:0.25": lambda ratio: (1 - np.exp(ratio) ** -0.25) / 0.25,
}


@pytest.mark.parametrize("divergence", SCORES)
@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo_norm", "discopop"])
def test_other_divergences_replace_the_log_ratio(name, divergence):
    pairs = random_pairs(scale=1.0)
    zero = np.zeros_like(pairs.chosen)

    def expected(p):
        score = SCORES[divergence]
        scored = p._replace(
            chosen=score(p.ratio_chosen), rejected=score(p.ratio_rejected), ref_chosen=zero, ref_rejected=zero
        )
        return formula(name, scored)

    ours, gradients = run(name, pairs, divergence)
    np.testing.assert_allclose(ours, expected(pairs), rtol=5e-4, atol=1e-5)
    for field, value in gradient(expected, pairs).items():
        np.testing.assert_allclose(gradients[field], value, rtol=2e-3, atol=1e-5, err_msg=field)


def test_alpha_divergence_runs_from_the_reverse_to_the_forward_kl():
    pairs = random_pairs(scale=1.0)
    np.testing.assert_allclose(run("sigmoid", pairs, "alpha:0.001")[0], run("sigmoid", pairs)[0], rtol=5e-3)
    forward = run("sigmoid", pairs, "forward_kl")[0]
    np.testing.assert_allclose(run("sigmoid", pairs, "alpha:0.999")[0], forward, rtol=2e-2, atol=1e-3)


def equal_completions(count=4, beta=0.3):
    one = random_pairs(count)
    return one._replace(
        rejected=one.chosen, ref_rejected=one.ref_chosen, rejected_tokens=one.chosen_tokens, beta=np.full(count, beta)
    )


def test_equal_completions_have_the_loss_of_a_coin():
    """h = 0 whatever the log-probs are; the shift of SimPO is its gamma."""
    pairs = equal_completions()
    for name in ("sigmoid", "sigmoid_norm", "robust", "cpo_prefer", "odds_ratio", "discopop"):
        expected = np.log(2) / 2 + 0.5 if name == "discopop" else np.log(2)
        np.testing.assert_allclose(run(name, pairs)[0], expected, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(run("hinge", pairs)[0], 1)
    np.testing.assert_allclose(run("ipo", pairs)[0], (1 / 0.6) ** 2, rtol=1e-6)
    np.testing.assert_allclose(run("simpo", pairs, simpo_gamma=2.0)[0], np.log1p(np.exp(2.0)), rtol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "robust", "aot", "aot_unpaired", "sigmoid_norm", "cpo_prefer"])
def test_without_beta_all_pairs_are_coins(name):
    pairs = random_pairs()._replace(beta=np.zeros(6))
    losses, gradients = run(name, pairs)
    np.testing.assert_allclose(losses, np.log(2), rtol=1e-6)
    assert not any(value.any() for value in gradients.values())


def test_small_beta_makes_the_gradient_of_dpo_proportional_to_beta():
    pairs = random_pairs()._replace(beta=np.full(6, 1e-4))
    np.testing.assert_allclose(run("sigmoid", pairs)[1]["chosen"], -0.5e-4, rtol=1e-3)


def test_half_of_the_labels_flipped_teaches_nothing_but_indifference():
    pairs = random_pairs()
    mirrored = pairs._replace(
        chosen=pairs.rejected, rejected=pairs.chosen, ref_chosen=pairs.ref_rejected, ref_rejected=pairs.ref_chosen
    )
    ours, swapped = run("sigmoid", pairs, label_smoothing=0.5), run("sigmoid", mirrored, label_smoothing=0.5)
    np.testing.assert_allclose(ours[0], swapped[0], rtol=1e-5)
    assert np.all(ours[0] >= np.log(2))
    # The gradient pulls h to 0: its sign is that of h.
    assert np.array_equal(np.sign(ours[1]["chosen"]), np.sign(pairs.h))


def test_label_smoothing_changes_plain_sigmoid():
    pairs = random_pairs()
    plain, smooth = run("sigmoid", pairs)[0], run("sigmoid", pairs, label_smoothing=0.1)[0]
    np.testing.assert_allclose(smooth - plain, 0.1 * pairs.beta * pairs.h, rtol=1e-3, atol=1e-5)


def test_robust_loss_is_unbiased_under_flipped_labels():
    """(1 - eps) robust(h) + eps robust(-h) = logistic loss of the true label."""
    pairs, eps = random_pairs(), 0.2
    flipped = pairs._replace(
        chosen=pairs.rejected, rejected=pairs.chosen, ref_chosen=pairs.ref_rejected, ref_rejected=pairs.ref_chosen
    )
    mean = (1 - eps) * run("robust", pairs, label_smoothing=eps)[0] + eps * run("robust", flipped, label_smoothing=eps)[
        0
    ]
    np.testing.assert_allclose(mean, run("sigmoid", pairs)[0], rtol=1e-4, atol=1e-6)


def test_exo_is_zero_where_the_policy_has_the_smoothed_odds():
    eps = 0.1
    pairs = equal_completions(beta=1.0)
    pairs = pairs._replace(chosen=pairs.chosen + np.log((1 - eps) / eps))
    np.testing.assert_allclose(run("exo_pair", pairs, label_smoothing=eps)[0], 0, atol=1e-5)


def test_sorting_ignores_which_pair_a_value_came_from():
    pairs = random_pairs()
    order = np.array([3, 0, 5, 1, 4, 2])
    beta = np.full(6, 0.2)
    mixed = pairs._replace(rejected=pairs.rejected[order], ref_rejected=pairs.ref_rejected[order], beta=beta)
    ours, other = run("aot_unpaired", pairs._replace(beta=beta))[0], run("aot_unpaired", mixed)[0]
    np.testing.assert_allclose(np.sort(ours), np.sort(other), rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.whole_step])
def test_unused_example_indices_do_not_take_part_in_a_step(name):
    pairs = random_pairs(4)._replace(beta=np.full(4, 0.2))
    rng = np.random.default_rng(3)
    used = [5, 0, 3, 7]

    def scattered(field, values):
        wide = np.zeros(8) if field == "weight" else rng.uniform(-300, 0, 8)
        wide[used] = values
        return wide.reshape(2, 4)

    packed = Pairs(*(scattered(field, values) for field, values in pairs._asdict().items()))
    packed = packed._replace(beta=np.full((2, 4), 0.2))
    ours, gradients = run(name, packed)
    alone, own = run(name, pairs)
    np.testing.assert_allclose(ours.ravel()[used], alone, rtol=1e-5)
    for field, value in own.items():
        np.testing.assert_allclose(gradients[field].ravel()[used], value, rtol=1e-5, atol=1e-7)
        assert not np.delete(gradients[field].ravel(), used).any()


def test_mixes_add_up_and_published_mixes_have_names():
    pairs = random_pairs()
    parts = 0.8 * run("sigmoid", pairs)[0] + 0.2 * run("bco_pair", pairs)[0] + run("sft", pairs)[0]
    np.testing.assert_allclose(run("mpo", pairs)[0], parts, rtol=1e-6)
    np.testing.assert_allclose(
        run("orpo", pairs)[0], run("sft", pairs)[0] + 0.1 * run("odds_ratio", pairs)[0], rtol=1e-6
    )
    assert parse("cpo").reference is False
    assert parse("sft+sigmoid").reference is True
    for recipe in RECIPES:
        assert np.all(np.isfinite(run(recipe, pairs)[0]))


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("sigmoidd", "did you mean 'sigmoid'"),
        ("sigmoid+", "not a sum of losses"),
        ("-1*sigmoid", "not a sum of losses|positive number"),
        ("0*sigmoid", "positive number"),
        ("sigmoid-hinge", "not a sum of losses"),
        ("", "not a sum of losses"),
    ],
)
def test_expressions_that_are_no_losses(expression, words):
    with pytest.raises(UserError, match=words):
        parse(expression)


@pytest.mark.parametrize("text", ["kl", "alpha", "alpha:0", "alpha:1", "alpha:x", "alpha:nan", "reverse_kl:1"])
def test_texts_that_are_no_divergences(text):
    with pytest.raises(UserError, match=r"config\.objective\.divergence"):
        Divergence.parse(text)


# One row a pair: anything from -1e4 to 0, likely at the ends.
logp = st.one_of(st.floats(-1e4, 0, width=32), st.sampled_from([-1e4, -1e-6, 0.0]))
rows = st.lists(st.tuples(logp, logp, logp, logp, st.integers(1, 500), st.integers(1, 500)), min_size=3, max_size=3)
EXTREME = [(name, "reverse_kl") for name in LOSSES]
EXTREME += [("sigmoid", d) for d in DIVERGENCES[1:]] + [("ipo", "forward_kl"), ("discopop", "forward_kl")]


@functools.cache
def extreme(dtype):
    """All losses and gradients in one program: values are given, so it is compiled once a dtype."""

    @jax.jit
    def run_all(pairs):
        outcomes = {}
        for name, divergence in EXTREME:
            mix, link, values = parse(name), Divergence.parse(divergence), values_of(name)

            def total(completions, mix=mix, link=link, values=values):
                own = pairs._replace(chosen=completions[0], rejected=completions[1])
                return jnp.sum(mix(own, values, None if link.is_default else link.scored(own)))

            value, gradients = jax.value_and_grad(total)((pairs.chosen, pairs.rejected))
            outcomes[f"{name} {divergence}"] = (value, *gradients)
        return outcomes

    return run_all


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(rows, st.sampled_from([0.01, 0.1, 0.5, 2.0]), st.sampled_from(["float32", "bfloat16"]))
def test_values_and_gradients_are_finite_for_any_log_probs(rows, beta, dtype):
    columns = [jnp.asarray(column, dtype) for column in np.asarray(rows, np.float32).T]
    pairs = Pairs(*columns, jnp.full(3, beta, jnp.float32), jnp.ones(3))
    for name, (value, *gradients) in extreme(dtype)(pairs).items():
        assert value.dtype == jnp.float32, name
        assert np.isfinite(value), name
        for each in gradients:
            assert np.all(np.isfinite(np.asarray(each, np.float32))), name
