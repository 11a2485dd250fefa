"""Programs that are found traced are those that would be traced now."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from smallr.core import traced
from smallr.core.sharding import make_mesh
from tests.runs import ROOT, environment


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Is of a class whose source is not the package's."""


class Pair(NamedTuple):
    """Is no tree that is kept."""

    a: object
    b: object


@pytest.fixture(autouse=True)
def _kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(traced, "is_kept", True)


def arguments():
    """A state, which is donated, and what is read beside it; one array is read by nobody."""
    mesh = make_mesh(1, 1, 1)
    split = NamedSharding(mesh, PartitionSpec("fsdp"))
    state = {
        "a": jax.device_put(np.arange(8.0, dtype=np.float32), split),
        "n": jax.device_put(np.int32(3), split.update(spec=())),
    }
    return state, {"x": np.full((2, 8), 0.5, np.float32), "unread": np.zeros(4, np.float32)}


def counted(key="key"):
    """A jitted step that is kept under a key, unless that is None, and how often it was traced."""
    calls = []

    def step(state, batch):
        calls.append(1)
        product = jnp.tanh(batch["x"] @ jnp.diag(state["a"])).sum(0)
        return {"a": state["a"] + product, "n": state["n"] + 1}, {
            "loss": product.sum(),
            "each": [product, (product * 2,)],
        }

    sharding = {name: each.sharding for name, each in arguments()[0].items()}
    given = {"in_shardings": (sharding, None), "out_shardings": (sharding, None), "donate_argnums": 0}
    return jax.jit(step if key is None else traced.kept(step, key), **given), calls


def test_what_was_traced_once_is_found_and_gives_the_same_bits():
    usual = counted(None)[0](*arguments())
    for times in (1, 0, 0):
        step, calls = counted()
        state, batch = arguments()
        after, found = step(state, batch)
        assert len(calls) == times
        assert state["a"].is_deleted()
        assert found.keys() == usual[1].keys()
        for ours, wanted in zip(jax.tree.leaves((after, found)), jax.tree.leaves(usual), strict=True):
            assert (ours.dtype, ours.shape) == (wanted.dtype, wanted.shape)
            np.testing.assert_array_equal(ours, wanted)
        assert after["a"].sharding == arguments()[0]["a"].sharding
        after, _ = step(after, batch)  # and goes on from there, with the same program
        assert int(after["n"]) == 5
        assert len(calls) == times
    other, calls = counted("another key")
    other(*arguments())
    assert len(calls) == 1
    state, batch = arguments()
    step, calls = counted()
    step(state, {**batch, "x": np.ones((3, 8), np.float32)})  # of another shape
    assert len(calls) == 1


def test_a_damaged_entry_is_traced_again(tmp_path, caplog):
    counted()[0](*arguments())
    (entry,) = (tmp_path / "cache" / traced.KIND).iterdir()
    entry.write_bytes(entry.read_bytes()[:-1] + b"?")
    step, calls = counted()
    step(*arguments())
    assert len(calls) == 1
    assert "is damaged" in caplog.text


def test_what_has_no_text_is_traced_as_ever(tmp_path, monkeypatch):
    for key in (("g", len), ("h", lambda: 1), object(), Foreign, ("t", type(Foreign())), np.zeros(2000)):
        assert traced.key_text(key) is None, key
        step, calls = counted(key)
        step(*arguments())
        assert len(calls) == 1
    assert traced.key_text((1, "a", float, ("b", None), make_mesh(1, 1, 1), jnp.float32)) is not None
    monkeypatch.setattr(traced, "is_kept", False)
    assert traced.key_text("a") is None
    assert not (tmp_path / "cache" / traced.KIND).exists()


def test_a_program_that_cannot_be_kept_is_compiled_as_ever(tmp_path):
    def step(state, batch):
        jax.debug.callback(lambda: None)
        return state, batch["x"].sum()

    def odd(state, batch):
        return state, Pair(batch["x"].sum(), 1.0)

    assert float(jax.jit(traced.kept(step, "callback"))(*arguments())[1]) == 8
    assert isinstance(jax.jit(lambda *given: tuple(traced.kept(odd, "odd")(*given)[1]))(*arguments()), tuple)
    assert not [*(tmp_path / "cache" / traced.KIND).iterdir()]
    with jax.disable_jit():
        assert float(traced.kept(step, "callback")(*arguments())[1]) == 8


def test_texts_are_made_once(monkeypatch):
    made = []
    assert [traced.remembered("key", lambda: made.append(1) or "text") for _ in range(3)] == ["text"] * 3
    assert len(made) == 1
    assert traced.remembered(("key", made.append), lambda: "other") == "other"
    monkeypatch.setattr(traced, "_source_digest", lambda: "another source")
    assert traced.remembered("key", lambda: "new") == "new"


def test_source_that_was_written_since_it_was_imported_is_not_what_runs(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(traced, "IMPORTED_AT", 0.0)
        assert traced.key_text("a") is None
    assert traced.key_text("a") is not None


def test_a_copy_that_keeps_the_time_of_its_original_was_written_when_it_was_copied(tmp_path, monkeypatch):
    (tmp_path / "module.py").write_text("x = 1")
    monkeypatch.setattr(traced, "_ROOT", tmp_path)
    monkeypatch.setattr(traced, "IMPORTED_AT", time.time() + 60)
    assert traced.key_text("a") is not None
    monkeypatch.setattr(traced, "IMPORTED_AT", time.time() - 1)
    os.utime(tmp_path / "module.py", (0, 0))
    assert traced.key_text("a") is None


@pytest.mark.process
def test_a_key_is_the_same_text_in_every_process():
    code = (
        "from smallr.core import traced\n"
        "from smallr.core.sharding import make_mesh\n"
        "from smallr.losses.preference.registry import Field\n"
        "print(hash(traced.key_text) and traced.key_text((Field, make_mesh(1, 1, 1), {'a': 1.5})))"
    )
    texts = set()
    for seed in ("1", "2"):
        env = environment(PYTHONHASHSEED=seed)
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True, capture_output=True)
        texts.add(done.stdout)
    assert len(texts) == 1
    assert texts.pop().strip() != b"None"
