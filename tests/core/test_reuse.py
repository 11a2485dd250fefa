"""Programs are shared exactly where all that they are made of is equal."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smallr
from smallr.core.reuse import Kept, identity, settings, shapes
from smallr.losses.preference import registry
from smallr.models.lora import LoRA
from smallr.training.objectives.preference import Preference


def test_a_value_is_made_once_and_the_longest_unused_goes_first():
    kept, made = Kept(2), []

    def get(key: str) -> str:
        return kept.get(key, lambda: made.append(key) or key.upper())

    assert [get(key) for key in ("a", "b", "a", "c", "a", "b")] == ["A", "B", "A", "C", "A", "B"]
    assert made == ["a", "b", "c", "b"]
    assert "a" in kept
    assert "c" not in kept


def test_a_value_that_could_not_be_made_is_not_kept():
    kept = Kept(2)
    with pytest.raises(ZeroDivisionError):
        kept.get("a", lambda: 1 / 0)
    assert kept.get("a", lambda: 2) == 2


def test_equal_descriptions_meet_and_any_other_field_parts_them():
    base = Preference("sigmoid", (0.1, 0.2, 0.5), values={"alpha": 1.0})
    assert identity(base) == identity(Preference("sigmoid", (0.1, 0.2, 0.5), values={"alpha": 1.0}))
    others = [
        {"loss": "ipo"},
        {"betas": (0.1, 0.2, 0.4)},
        {"reference": "live"},
        {"values": {"alpha": 2.0}},
        {"divergence": "js"},
        {"ld_alpha": 0.5},
        {"weighting": "wpo"},
        {"normalise": "epoch"},
    ]
    assert {name for other in others for name in other} == {field.name for field in dataclasses.fields(Preference)}
    keys = {identity(base)}
    for other in others:
        changed = object.__new__(Preference)  # as it is, whether or not its fields go together
        for field in dataclasses.fields(Preference):
            object.__setattr__(changed, field.name, other.get(field.name, getattr(base, field.name)))
        keys.add(identity(changed))
    assert len(keys) == 1 + len(others)


def test_a_loss_that_is_registered_again_is_another_program(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", dict(registry.LOSSES))

    def registered(factor: float) -> Preference:
        def clipped(pairs):
            return factor * pairs.h

        smallr.register_loss(clipped)
        return Preference("0.5*clipped+sft", 0.1)

    before, again = registered(1.0), Preference("0.5*clipped+sft", 0.1)
    assert identity(before) == identity(again)
    assert identity(before) != identity(registered(2.0))
    assert identity(before) == identity(again), "an objective keeps the function that it was made with"


def test_what_a_dataclass_holds_besides_its_fields_counts():
    @dataclasses.dataclass(frozen=True)
    class Objective:
        beta: float = 0.1
        scale: dataclasses.InitVar[float] = 1.0

        def __post_init__(self, scale):
            object.__setattr__(self, "scale", scale)

    assert identity(Objective()) == identity(Objective())
    assert identity(Objective(scale=1.0)) != identity(Objective(scale=2.0))
    assert identity([Objective]) == identity([Objective]), "a class is itself"


def test_settings_of_jax_are_those_of_here():
    before = settings()
    with jax.default_matmul_precision("bfloat16"):
        assert settings() != before
    assert settings() == before


def test_another_class_of_equal_fields_is_another_program():
    @dataclasses.dataclass(frozen=True)
    class Other(LoRA):
        pass

    assert identity(LoRA(2, 4.0)) == identity(LoRA(2, 4.0))
    assert identity(LoRA(2, 4.0)) != identity(Other(2, 4.0))
    assert identity({"a": 1}) != identity({"a": 1.0})
    assert identity({"a": True}) != identity({"a": 1})
    assert identity([1]) != identity((1,))


def test_what_cannot_be_described_is_itself_alone():
    @dataclasses.dataclass
    class Mutable:
        beta: float = 0.1

    one, array = Mutable(), np.ones(3)
    assert identity(one) == identity(one)
    assert identity(one) != identity(Mutable())
    assert identity(array) == identity(array)
    assert identity(array) != identity(np.ones(3))


def test_shapes_hold_structure_dtype_and_sharding():
    tree = {"a": jnp.zeros((2, 3)), "b": np.zeros(4, np.int32)}
    assert shapes(tree) == shapes(jax.tree.map(lambda x: x + 1, tree))
    assert shapes(tree) != shapes({"a": jnp.zeros((3, 2)), "b": np.zeros(4, np.int32)})
    assert shapes(tree) != shapes({"a": jnp.zeros((2, 3)), "b": np.zeros(4, np.float32)})
    assert shapes(tree) != shapes({"a": jnp.zeros((2, 3)), "c": np.zeros(4, np.int32)})
    assert shapes({"a": jnp.zeros(2)}) != shapes({"a": np.zeros(2, np.float32)})
