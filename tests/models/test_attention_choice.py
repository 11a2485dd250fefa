"""The choice of attention, by candidates that are right, wrong, broken, fast and slow."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from smallr.models import attention_choice
from smallr.models.attention_choice import choose, random_packing, try_candidates
from smallr.models.attention_dense import dense_attention
from smallr.models.attention_support import AttentionShape, DeviceFacts

SHAPE = AttentionShape(2, 40, 2, 1, 8, "float32", examples=4)
GPU = DeviceFacts("cuda", "NVIDIA H100 80GB HBM3", (9, 0))


def _right(*args):
    return dense_attention(*args).astype(args[0].dtype)


def _wrong(*args, by=1.01):
    return _right(*args) * by


def _wrong_gradient(q, k, v, *rule):
    out = _right(q, k, v, *rule)
    return out + 0.01 * (_right(q, jax.lax.stop_gradient(k), v, *rule) - jax.lax.stop_gradient(out))


def _raises(*args):
    raise RuntimeError("no kernel image is available\nfor execution on the device")


CANDIDATES = {"cudnn_packed": _wrong, "cudnn": _raises, "gpu": _right, "xla": _right}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path))


class Clock:
    """Gives programs the seconds that it was told, in the order in which they are timed."""

    def __init__(self, *seconds: float):
        self.seconds, self.calls = list(seconds), 0

    def __call__(self, program, *args) -> float:
        self.calls += 1
        jax.block_until_ready(program(*args))
        return self.seconds[self.calls - 1]


def test_the_fastest_that_agrees_is_taken():
    clock = Clock(0.002, 0.003)
    choice = choose(SHAPE, GPU, None, CANDIDATES, clock)
    assert choice.impl == "gpu"
    lines = choice.lines()
    assert lines[0] == (
        "attention: gpu, 2.00 ms a layer forward and backward, 1.50 x as fast as xla; 2 of 4 candidates agree with the dense "
        "rule on NVIDIA H100 80GB HBM3 (measured now)"
    )
    assert lines[1].startswith("attention: cudnn_packed is left out: it differs from the dense rule by 1.0e-02")
    assert lines[2] == (
        "attention: cudnn is left out: RuntimeError: no kernel image is available for execution on the device"
    )
    assert clock.calls == 2, "what is wrong or raises is not timed"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("wrong", [_wrong, _wrong_gradient, functools.partial(_wrong, by=0.99)])
def test_an_error_of_a_hundredth_is_refused(wrong, dtype):
    shape = dataclasses.replace(SHAPE, dtype=dtype)
    found = {trial.impl: trial for trial in try_candidates(shape, GPU, None, {"gpu": wrong, "xla": _right}, Clock(1.0))}
    assert "differs from the dense rule" in found["gpu"].note
    assert found["xla"].note == "", "rounding alone is within the tolerance"


def test_what_gives_other_bits_each_time_is_refused():
    """As atomic additions do: a run could not be resumed bit for bit."""
    count = iter(range(1000))

    def unstable(*args):
        nudge = jax.pure_callback(lambda: np.float32(1e-6 * next(count)), jax.ShapeDtypeStruct((), "float32"))
        return _right(*args) * (1 + nudge)

    found = try_candidates(SHAPE, GPU, None, {"cudnn": unstable, "xla": _right}, Clock(1.0))
    assert found[0].note == attention_choice.NOT_REPEATED
    assert found[1].seconds == 1.0


def test_an_answer_that_lacked_memory_is_not_kept():
    def large(*args):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    for _ in range(2):
        clock = Clock(1.0)
        assert choose(SHAPE, GPU, None, {"gpu": large, "xla": _right}, clock).impl == "xla"
        assert clock.calls == 1


def test_a_single_wrong_token_is_refused():
    def one(*args):
        out = _right(*args)
        return out.at[0, 7].mul(1.5)

    shape = dataclasses.replace(SHAPE, length=400)
    assert attention_choice.disagreement(one, shape) > attention_choice.TOLERANCE["bfloat16"]


def test_not_finite_is_refused():
    assert attention_choice.disagreement(lambda *args: _right(*args) * np.nan, SHAPE) == np.inf


def test_the_answer_is_kept_by_shape_and_device(monkeypatch):
    monkeypatch.setattr(attention_choice, "_program", lambda attend, shape: lambda *args: args[:1])
    monkeypatch.setattr(attention_choice, "disagreement", lambda attend, shape: 0.5 * (attend in (_wrong, _raises)))
    choose(SHAPE, GPU, None, CANDIDATES, Clock(0.002, 0.003))
    again = Clock()
    kept = choose(SHAPE, GPU, None, CANDIDATES, again)
    assert (kept.impl, again.calls) == ("gpu", 0)
    assert "kept from an earlier measurement" in kept.reason
    assert len(kept.lines()) == 3, "notes are kept too"
    for shape, device in (
        (dataclasses.replace(SHAPE, head_dim=16), GPU),
        (SHAPE, dataclasses.replace(GPU, kind="NVIDIA L4")),
        (SHAPE, dataclasses.replace(GPU, runtime="cuda 13000")),
    ):
        clock = Clock(0.003, 0.002)
        assert choose(shape, device, None, CANDIDATES, clock).impl == "xla"
        assert clock.calls == 2
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")  # what a candidate that did not repeat asks for
    assert choose(SHAPE, GPU, None, CANDIDATES, Clock(0.003, 0.002)).impl == "xla"


def test_layers_of_different_windows_are_all_timed():
    shape = dataclasses.replace(SHAPE, windows=(None, 5))
    clock = Clock(1.0, 2.0)
    (trial,) = try_candidates(shape, GPU, None, {"xla": CANDIDATES["xla"]}, clock)
    assert trial.seconds == 3.0


def test_nothing_that_agrees_is_xla_with_a_warning():
    choice = choose(SHAPE, GPU, None, {"gpu": _raises, "xla": _wrong})
    assert choice.impl == "xla"
    assert "no candidate agrees with the dense rule" in choice.reason


def test_a_cpu_spends_no_time(monkeypatch):
    monkeypatch.setattr(attention_choice, "try_candidates", lambda *args: pytest.fail("it was measured"))
    choice = choose(SHAPE, DeviceFacts("cpu", "cpu"))
    assert (choice.impl, choice.lines()) == ("xla", ["attention: xla, the one candidate on cpu"])


@pytest.mark.slow
def test_what_is_declared_unsupported_is_not_tried():
    """On a machine without GPU: all but xla are left out by the table, or by the note of what they raise."""
    found = {trial.impl: trial for trial in try_candidates(SHAPE, GPU, None, None, Clock(1.0, 2.0))}
    assert "float32" in found["cudnn"].note
    assert "float32" in found["cudnn_packed"].note
    assert found["xla"].seconds is not None


def test_random_rows_have_padding_and_all_completions():
    packing = random_packing(dataclasses.replace(SHAPE, completions=3), 3, 300)
    assert (packing.horizon == 0).any()
    ends = (packing.horizon == np.arange(300) + 1).sum(1)
    assert (ends % 3 == 0).all()
    assert ends.max() <= SHAPE.examples * 3
