"""DPO and CogPO against closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallr.losses.preference import dpo, log_ratio_margin

logp = st.floats(-1e4, 0, width=32)


def case(pairs=6, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(-60, -5, size=pairs).astype(np.float32) for _ in range(4)]


def float64_loss(chosen, rejected, ref_chosen, ref_rejected, beta, smoothing):
    h = np.asarray(beta, np.float64) * (
        (chosen.astype(np.float64) - ref_chosen) - (rejected.astype(np.float64) - ref_rejected)
    )
    return (1 - smoothing) * np.logaddexp(0, -h) + smoothing * np.logaddexp(0, h)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("beta", [0.1, np.linspace(0, 0.5, 6)])
def test_equals_the_formula_in_float64(beta, smoothing):
    arrays = case()
    beta = np.asarray(beta, np.float32)
    np.testing.assert_allclose(dpo(*arrays, beta, smoothing), float64_loss(*arrays, beta, smoothing), rtol=2e-5)


def test_loss_is_ln_2_where_policy_and_reference_agree():
    chosen, rejected, *_ = case()
    np.testing.assert_allclose(dpo(chosen, rejected, chosen, rejected, 0.3), np.log(2), rtol=1e-7)


def test_equal_betas_are_dpo_bit_for_bit():
    arrays = case()
    np.testing.assert_array_equal(dpo(*arrays, jnp.full(6, 0.2)), dpo(*arrays, 0.2))


def test_a_pair_with_beta_zero_has_loss_ln_2_and_no_gradient_at_all():
    arrays = case()
    beta = jnp.array([0.0, 0.1, 0.2, 0.0, 0.5, 0.3])
    losses = dpo(*arrays, beta)
    gradient = jax.grad(lambda c, r: jnp.sum(dpo(c, r, *arrays[2:], beta)), argnums=(0, 1))(*arrays[:2])
    for index in (0, 3):
        np.testing.assert_allclose(losses[index], np.log(2), rtol=1e-7)
        assert gradient[0][index] == 0
        assert gradient[1][index] == 0
    assert np.all(np.asarray(gradient[0])[[1, 2, 4, 5]] != 0)


def test_swapping_the_sides_flips_the_sign_of_h():
    chosen, rejected, ref_chosen, ref_rejected = case()
    h = log_ratio_margin(chosen, rejected, ref_chosen, ref_rejected)
    np.testing.assert_array_equal(h, -log_ratio_margin(rejected, chosen, ref_rejected, ref_chosen))
    assert np.any(np.abs(h) > 1)


def test_gradient_in_h_is_minus_beta_sigma_minus_beta_h():
    arrays = case()
    beta = np.array([0.05, 0.1, 0.2, 0.5, 1.0, 2.0], np.float32)
    h = np.asarray(log_ratio_margin(*arrays), np.float64)
    expected = -beta / (1 + np.exp(beta * h)) / len(h)
    gradient = jax.grad(lambda chosen: jnp.mean(dpo(chosen, *arrays[1:], beta)))(arrays[0])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-12)


@settings(deadline=None, max_examples=200)
@given(logp, logp, logp, logp, st.floats(0, 10, width=32), st.sampled_from([0.0, 0.2]))
def test_values_and_gradients_are_finite_for_any_log_probs(chosen, rejected, ref_chosen, ref_rejected, beta, smoothing):
    def loss(c, r):
        return dpo(c, r, jnp.float32(ref_chosen), jnp.float32(ref_rejected), beta, smoothing)

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(jnp.float32(chosen), jnp.float32(rejected))
    assert np.isfinite(value)
    assert value >= 0
    assert np.all(np.isfinite(gradients))
