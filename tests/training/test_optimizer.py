"""Schedules at their corners; AdamW and clipping against a plain numpy implementation."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smallr.config import base
from smallr.training.optimizer import decay_mask, make_optimizer, make_schedule


def config(**changes):
    optimizer = base().optimizer
    optimizer.update(changes)
    return optimizer


def test_warm_up_starts_above_zero_and_reaches_the_peak():
    schedule = make_schedule(config(learning_rate=1.0, warmup=4, schedule="constant"), 10)
    np.testing.assert_allclose([schedule(i) for i in range(6)], [0.25, 0.5, 0.75, 1.0, 1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(("name", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_decay_from_peak_to_final(name, middle):
    schedule = make_schedule(config(learning_rate=1.0, warmup=0.0, schedule=name, final_fraction=0.1), 100)
    assert float(schedule(0)) == pytest.approx(1.0)
    assert float(schedule(50)) == pytest.approx(middle)
    assert float(schedule(100)) == pytest.approx(1.0 if name == "constant" else 0.1)


def test_warm_up_as_a_share_of_the_run():
    schedule = make_schedule(config(learning_rate=2.0, warmup=0.1, schedule="linear"), 50)
    np.testing.assert_allclose([schedule(0), schedule(4), schedule(5)], [0.4, 2.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize(("field", "value"), [("schedule", "cosin"), ("warmup", 200)])
def test_bad_values_name_their_field(field, value):
    with pytest.raises(ValueError, match=f"config.optimizer.{field}"):
        make_schedule(config(**{field: value}), 100)


def test_decay_spares_scales_and_biases():
    mask = decay_mask({"norm": {"scale": jnp.ones(2)}, "q": {"kernel": jnp.ones((2, 2)), "q_bias": jnp.ones(2)}})
    assert mask == {"norm": {"scale": False}, "q": {"kernel": True, "q_bias": False}}


def test_three_updates_equal_adamw_by_hand():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "scale": rng.normal(size=3)}
    settings = config(learning_rate=0.1, warmup=0.0, schedule="constant", weight_decay=0.05, clip_norm=0.5)
    optimizer = make_optimizer(settings, make_schedule(settings, 10))
    ours = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()}
    state = optimizer.init(ours)
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(p) for k, p in params.items()}
    for step in range(1, 4):
        gradient = {k: rng.normal(size=p.shape) for k, p in params.items()}
        updates, state = optimizer.update({k: jnp.asarray(g, jnp.float32) for k, g in gradient.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for k, g in gradient.items():
            g = g * min(1, 0.5 / norm)
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.999 * v[k] + 0.001 * g**2
            direction = (m[k] / (1 - 0.9**step)) / (np.sqrt(v[k] / (1 - 0.999**step)) + 1e-8)
            decay = 0.05 * params[k] if k == "kernel" else 0.0
            params[k] = params[k] - 0.1 * (direction + decay)
    for k, value in params.items():
        np.testing.assert_allclose(ours[k], value, rtol=2e-5)
