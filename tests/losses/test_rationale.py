"""Answer and rationale likelihood by role."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smallr.losses.rationale import amplification, rationale_loss, role_nll

# One row, three example indices: (answer, answer, rationale x3), (answer only), unused; the last scored position is padding.
BRANCH = jnp.array([[0, 0, 0, 0, 0, 1, 1, 0]])
ROLE = jnp.array([[1, 1, 2, 2, 2, 1, 1, 0]])
LOGPS = -jnp.array([[1.0, 2.0, 0.5, 0.25, 0.25, 3.0, 4.0, 100.0]])


def test_roles_are_summed_apart_and_padding_is_ignored():
    nll = role_nll(LOGPS, BRANCH, ROLE, 3)
    np.testing.assert_allclose(nll.answer, [[3.0, 7.0, 0.0]])
    np.testing.assert_allclose(nll.rationale, [[1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(nll.answer_tokens, [[2, 2, 0]])
    np.testing.assert_array_equal(nll.rationale_tokens, [[3, 0, 0]])


@pytest.mark.parametrize(
    ("normalisation", "expected"),
    [
        ("sum", (2 * 3 + 0.5 * 1 + 2 * 7) / 2),
        ("token_mean", (2 * 3 + 0.5 * 1 + 2 * 7) / (2 * 2 + 0.5 * 3 + 2 * 2)),
        ("sample_mean", ((2 * 3 + 0.5 * 1) / (2 * 2 + 0.5 * 3) + 7 / 2) / 2),
    ],
)
def test_three_normalisations_by_hand(normalisation, expected):
    numerator, denominator = rationale_loss(
        role_nll(LOGPS, BRANCH, ROLE, 3), answer_weight=2.0, rationale_weight=0.5, normalisation=normalisation
    )
    np.testing.assert_allclose(jnp.sum(numerator) / jnp.sum(denominator), expected, rtol=1e-6)


@pytest.mark.parametrize("normalisation", ["sum", "token_mean", "sample_mean"])
def test_without_rationale_weight_it_is_plain_sft_of_the_answer(normalisation):
    answers_only = jnp.where(ROLE == 2, 0, ROLE)

    def loss(logps, role, weight):
        numerator, denominator = rationale_loss(
            role_nll(logps, BRANCH, role, 3), rationale_weight=weight, normalisation=normalisation
        )
        return jnp.sum(numerator) / jnp.sum(denominator)

    with_roles = jax.value_and_grad(loss)(LOGPS, ROLE, 0.0)
    plain = jax.value_and_grad(loss)(LOGPS, answers_only, 1.0)
    np.testing.assert_allclose(with_roles[0], plain[0], rtol=1e-7)
    np.testing.assert_allclose(with_roles[1], plain[1], rtol=1e-7)
    assert float(plain[0]) > 0


def test_answer_and_rationale_add_up_to_the_whole_target():
    nll = role_nll(LOGPS, BRANCH, ROLE, 3)
    np.testing.assert_allclose(jnp.sum(nll.answer + nll.rationale), -jnp.sum(LOGPS * (ROLE > 0)), rtol=1e-7)


def test_amplification_is_relative_clipped_and_carries_no_gradient():
    nll = role_nll(LOGPS, BRANCH, ROLE, 3)._replace(
        rationale=jnp.array([[1.0, 3.0, 8.0]]), rationale_tokens=jnp.array([[1.0, 1.0, 1.0]])
    )
    np.testing.assert_allclose(amplification(nll, 1.5), [[2 / 3, 0.75, 1.5]], rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(amplification(nll._replace(rationale=x), 1.5)))(nll.rationale)
    np.testing.assert_array_equal(gradient, 0)


def test_examples_without_rationale_keep_weight_one():
    np.testing.assert_allclose(amplification(role_nll(LOGPS, BRANCH, ROLE, 3), 4.0), [[1.0, 1.0, 1.0]])


def test_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="token_mean"):
        rationale_loss(role_nll(LOGPS, BRANCH, ROLE, 3), normalisation="mean")
