"""Losses registered from outside: found by name in configs and sums, and checked when they are registered."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smallr.config import preference
from smallr.core.errors import UserError
from smallr.losses.preference import LOSSES, Field, Pairs, parse, register_loss
from smallr.training.objective import OBJECTIVES, Objective, make_objective, register_objective


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    for table in (LOSSES, OBJECTIVES):
        for name in table:
            monkeypatch.setitem(table, name, table[name])  # put back what is replaced
    known = set(LOSSES), set(OBJECTIVES)
    yield
    for table, names in zip((LOSSES, OBJECTIVES), known, strict=True):
        for name in set(table) - names:
            del table[name]


def margin(pairs: Pairs, *, gap: float = 0.5):
    return -jax.nn.log_sigmoid(pairs.beta * pairs.h - gap)


def some_pairs(count: int = 5) -> Pairs:
    rng = np.random.default_rng(0)
    logps = rng.uniform(-20, -5, (4, count))
    return Pairs(*logps, *np.full((2, count), 7.0), np.linspace(0.1, 0.5, count), np.ones(count))


def test_a_registered_loss_is_a_name_like_any_other():
    assert register_loss(margin, fields={"gap": Field(0.25, "target margin", 0.0)}) is margin
    pairs = some_pairs()
    h = (pairs.chosen - pairs.ref_chosen) - (pairs.rejected - pairs.ref_rejected)
    expected = np.log1p(np.exp(-(pairs.beta * h - 2.0)))
    np.testing.assert_allclose(parse("margin")(pairs, {"gap": 2.0}), expected, rtol=1e-5)
    both = parse("0.5*margin+sigmoid")(pairs, {"gap": 2.0, "label_smoothing": 0.0})
    sigmoid = parse("sigmoid")(pairs, {"label_smoothing": 0.0})
    np.testing.assert_allclose(both, 0.5 * expected + sigmoid, rtol=1e-5)
    config = preference("margin", beta={"small": 0.1, "medium": 0.2, "large": 0.5})
    assert config.objective.gap == 0.25
    assert make_objective(config).betas == (0.1, 0.2, 0.5)
    config.objective.gap = -1.0
    with pytest.raises(UserError, match=r"config.objective.gap: -1.0 is not in \[0, inf\]"):
        make_objective(config)


def test_needs_and_a_second_registration():
    @register_loss(reference=False, beta=False)
    def likely(pairs: Pairs):
        return -pairs.chosen

    config = preference("likely")
    assert config.objective.reference == "none"
    assert "beta" not in config.objective

    @register_loss
    def likely(pairs: Pairs):  # noqa: F811 - as a notebook's cell that is run again
        return -2 * pairs.chosen

    assert preference("likely").objective.reference == "cached"
    np.testing.assert_allclose(parse("likely")(some_pairs(), {}), -2 * some_pairs().chosen, rtol=1e-6)


def named(name: str, function):
    function.__name__ = name
    return function


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (named("sigmoid", lambda pairs: pairs.h), {}, "'sigmoid' must be a new name"),
        (named("dpo", lambda pairs: pairs.h), {}, "'dpo' must be a new name"),
        (lambda pairs: pairs.h, {}, "'<lambda>' must be a new name"),
        (named("mine", lambda pairs, gap: gap), {}, r"mine\(gap\): .* keyword-only"),
        (named("mine", lambda pairs, *, gap: gap), {}, "with a default"),
        (named("mine", lambda pairs: pairs.h), {"fields": {"gap": Field(1.0, "")}}, "no parameter 'gap'"),
        (named("mine", lambda pairs: pairs.h), {"references": False}, "'references' of mine must be one of"),
    ],
)
def test_wrong_registrations(function, options, message):
    with pytest.raises(UserError, match=message):
        register_loss(function, **options)
    assert "mine" not in LOSSES


def test_objectives_by_name():
    with pytest.raises(UserError, match="'sft' must be a new name"):
        register_objective("sft")

    @register_objective("constant")
    class Constant(Objective):
        def __call__(self, scores, batch, reference):
            return jnp.zeros(()), {}

    config = preference()
    with config.unlocked():
        config.objective = {"name": "constant"}
    assert isinstance(make_objective(config), Constant)
    with config.unlocked():
        config.objective = {"name": "constant", "gamma": 1.0}
    with pytest.raises(UserError, match="gamma: objective constant has no such field"):
        make_objective(config)
