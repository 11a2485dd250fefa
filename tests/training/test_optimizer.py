"""Schedules at their corners; AdamW and clipping against a plain numpy implementation."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smallr.config import base
from smallr.core.errors import UserError
from smallr.training.optimizer import (
    Horizon,
    check_groups,
    extend,
    make_groups,
    make_optimizer,
    make_schedule,
    renewed,
    steps_of_schedule,
)
from smallr.training.update_rules import decay_mask


def config(**changes):
    optimizer = base().optimizer
    optimizer.update(changes)
    return optimizer


def plan(*steps):
    """Horizons of a run: the steps it was planned for, and (start, steps, how) of its extensions."""
    return (Horizon(0, steps[0]), *(Horizon(*extension) for extension in steps[1:]))


def test_warm_up_starts_above_zero_and_reaches_the_peak():
    schedule = make_schedule(config(learning_rate=1.0, warmup=4, schedule="constant"), plan(10))
    np.testing.assert_allclose([schedule(i) for i in range(6)], [0.25, 0.5, 0.75, 1.0, 1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(("name", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_decay_from_peak_to_final(name, middle):
    schedule = make_schedule(config(learning_rate=1.0, warmup=0.0, schedule=name, final_fraction=0.1), plan(100))
    assert float(schedule(0)) == pytest.approx(1.0)
    assert float(schedule(50)) == pytest.approx(middle)
    assert float(schedule(100)) == pytest.approx(1.0 if name == "constant" else 0.1)


def test_warm_up_as_a_share_of_the_run():
    schedule = make_schedule(config(learning_rate=2.0, warmup=0.1, schedule="linear"), plan(50))
    np.testing.assert_allclose([schedule(0), schedule(4), schedule(5)], [0.4, 2.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize(("field", "value"), [("schedule", "cosin"), ("warmup", 200)])
def test_bad_values_name_their_field(field, value):
    with pytest.raises(ValueError, match=f"config.optimizer.{field}"):
        make_schedule(config(**{field: value}), plan(100))


def test_a_run_that_is_extended_asks_how_the_rate_goes_on():
    with pytest.raises(UserError, match=r"planned for 10 steps, has done 10 and would now have 20.*on_extend=rewarm"):
        extend(config(), plan(10), 20, 10)
    with pytest.raises(UserError, match=r"on_extend: 'rewarn' must be one of: rewarm, constant, as_new"):
        extend(config(on_extend="rewarn"), plan(10), 20, 10)
    assert extend(config(), (), 20, 0) == plan(20), "a new run"
    assert extend(config(), plan(10), 20, 0) == plan(20), "nothing done yet"
    assert extend(config(), plan(10), 10, 7) == plan(10), "the same length"
    assert extend(config(schedule="constant", warmup=2), plan(10), 20, 10) == plan(20), "the rate does not change"
    extended = plan(10, (10, 20, "rewarm"))
    assert extend(config(on_extend="as_new"), extended, 20, 15) == extended, "decided already"


@pytest.mark.parametrize("how", ["rewarm", "constant", "as_new"])
def test_rates_after_an_extension(how):
    settings = config(learning_rate=1.0, warmup=0.1, schedule="linear", final_fraction=0.2, on_extend=how)
    horizons = extend(settings, plan(10), 20, 10)
    schedule, first, new = (make_schedule(settings, h) for h in (horizons, plan(10), plan(20)))
    rates = [float(schedule(n)) for n in range(20)]
    before = new if how == "as_new" else first
    assert rates[:10] == [float(before(n)) for n in range(10)]
    after = {"rewarm": [float(first(n)) for n in range(10)], "constant": [float(first(9))] * 10}
    assert rates[10:] == pytest.approx(after.get(how, [float(new(n)) for n in range(10, 20)]))


def test_a_constant_rate_of_zero_is_refused():
    settings = config(schedule="linear", warmup=0.0, final_fraction=0.0, on_extend="constant")
    longer_than_planned = plan(3, (5, 8, "constant"))  # step 4 is behind the end of the first schedule
    with pytest.raises(UserError, match="the last learning rate is 0"):
        extend(settings, longer_than_planned, 9, 8)


def test_groups_of_parameters_have_learning_rates_of_their_own():
    groups = {"heads": {"learning_rate": 1.0}, "rest": {"weight_decay": 0.5, "parameters": r"body\.w$"}}
    settings = config(learning_rate=0.1, warmup=0.0, schedule="constant", clip_norm=0.0, groups=groups)
    params = {"body": {"v": jnp.ones(3), "w": jnp.ones(3)}, "heads": {"body": {"w": jnp.ones(3)}}}
    optimizer = make_optimizer(settings, make_schedule(settings, plan(5)))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates["heads"]["body"]["w"], 10 * updates["body"]["v"], rtol=1e-6)
    np.testing.assert_allclose(updates["body"]["v"], -0.1, rtol=1e-4)
    np.testing.assert_allclose(updates["body"]["w"], -0.15, rtol=1e-4)
    check_groups(settings, params)
    with pytest.raises(UserError, match=r"groups.rest: no trained parameter is in it; its pattern is 'body"):
        check_groups(settings, {"heads": params["heads"], "body": {"v": jnp.ones(3)}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": 1.0}, "groups.heads.rate: the field must be one of: learning_rate, weight_decay, parameters"),
        ({"learning_rate": -1.0}, "must not be negative"),
        ({"parameters": "("}, "is no regular expression"),
    ],
)
def test_wrong_groups_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        make_groups(config(groups={"heads": fields}))


def test_a_renewed_state_begins_the_schedule_again():
    settings = config(learning_rate=1.0, warmup=4)
    optimizer = make_optimizer(settings, make_schedule(settings, plan(10)))
    params = {"w": jnp.ones(2)}
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(params, state, params)
    assert int(steps_of_schedule(state, jnp.asarray(9))) == 3
    again = renewed(optimizer, params, state)
    assert int(steps_of_schedule(again, jnp.asarray(9))) == 0
    assert int(steps_of_schedule(optax.sgd(0.1).init(params), jnp.asarray(9))) == 9


def test_decay_spares_scales_and_biases():
    mask = decay_mask({"norm": {"scale": jnp.ones(2)}, "q": {"kernel": jnp.ones((2, 2)), "q_bias": jnp.ones(2)}})
    assert mask == {"norm": {"scale": False}, "q": {"kernel": True, "q_bias": False}}


def test_three_updates_equal_adamw_by_hand():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)), "scale": rng.normal(size=3)}
    settings = config(learning_rate=0.1, warmup=0.0, schedule="constant", weight_decay=0.05, clip_norm=0.5)
    optimizer = make_optimizer(settings, make_schedule(settings, plan(10)))
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
