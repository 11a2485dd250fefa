"""Kernels of others: splash interpreted against the dense rule; cuDNN's lowered for CUDA, which needs no GPU."""

from __future__ import annotations

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from smallr.models import attention_stock
from smallr.models.attention import attention
from tests.models.helpers import packed_rule
from tests.models.test_attention import _dense_jax, _qkv

LAYOUT = [[(30, 10, 17), (9, 4, 4)], [(1, 1), (40, 16, 7)], []]
LENGTH = 75


@pytest.mark.slow
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (17, 3.0)])
def test_splash_equals_the_dense_rule(window, softcap):
    positions, horizon = packed_rule(LAYOUT, LENGTH)
    q, k, v, cotangent = _qkv(4, 2, len(LAYOUT), LENGTH)

    def outcome(attend):
        out, pull = jax.vjp(lambda *x: attend(*x, horizon, positions, window, softcap), q, k, v)
        return out, *pull(cotangent)

    ours = jax.jit(lambda: outcome(functools.partial(attention, impl="splash")))()
    theirs = jax.jit(lambda: outcome(_dense_jax))()
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(b).max(), 1.0), err_msg=name)


@pytest.fixture
def hopper(monkeypatch):
    """Lets JAX believe that it has an H100 with cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: False, raising=False)


def _lowered(impl: str, rows: int = 2, length: int = 201, devices: int = 1, window: int | None = None) -> str:
    def gradients(q, k, v, horizon, positions):
        def loss(q, k, v):
            out = attention(q, k, v, horizon, positions, window, impl=impl, sequences=6)
            return jnp.sum(out.astype(jnp.float32))

        return jax.grad(loss, (0, 1, 2))(q, k, v)

    q, k = (jax.ShapeDtypeStruct((rows, length, heads, 64), "bfloat16") for heads in (4, 2))
    rule = jax.ShapeDtypeStruct((rows, length), "int32")
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    axes = ("data", "fsdp", "tensor")
    mesh = AbstractMesh((1, devices, 1), axes, axis_types=(AxisType.Auto,) * 3, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(gradients).trace(q, k, k, rule, rule).lower(lowering_platforms=("cuda",)).as_text()


def _calls(text: str) -> list[tuple[str, dict]]:
    """Names and settings of the calls to cuDNN."""
    found = re.findall(r'custom_call @(__cudnn\$\w+)\(.*?backend_config = "(.*?[^\\])"', text)
    settings = (json.loads(json.loads(f'"{config}"'.replace("\\22", '\\"'))) for _, config in found)
    return [(name, config["cudnn_fmha_backend_config"]) for (name, _), config in zip(found, settings, strict=True)]


def test_the_packed_layout_is_lowered_for_cuda(hopper):
    """Forward and backward are cuDNN's, causal within each of up to six sequences a row; 201 tokens take 512 places."""
    calls = _calls(_lowered("cudnn_packed"))
    assert [name for name, _ in calls] == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    for _, config in calls:
        assert config["mask_type"] == "PADDING_CAUSAL"
        assert config["max_seg_per_batch"] == 6
        assert config["intermediate_tensor_shape"]["dimensions"][2:] == ["512", "512"]


def test_the_dense_mask_is_lowered_for_cuda(hopper):
    text = _lowered("cudnn", window=50)
    names = [name for name, _ in _calls(text)]
    assert names == ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]
    assert "2x1x202x202" in text, "the length is made even"


@pytest.mark.parametrize("impl", ["cudnn", "cudnn_packed"])
def test_each_device_runs_its_own_rows(hopper, impl):
    text = _lowered(impl, rows=8, length=200, devices=4)
    calls = [line for line in text.splitlines() if "custom_call @__cudnn$" in line]
    assert len(calls) == 2
    assert all(re.search(r"\(tensor<2x\d+x4x64xbf16>", call) for call in calls)


def test_what_a_kernel_does_not_know_is_said():
    q, k, v, _ = _qkv(2, 2, 1, 16)
    positions, horizon = packed_rule([[(4, 4)]], 16)
    for impl, window, softcap in (("cudnn", None, 3.0), ("cudnn_packed", 5, None), ("splash", jnp.int32(5), None)):
        with pytest.raises(ValueError, match=f"attention: {impl} knows no "):
            attention(q, k, v, horizon, positions, window, softcap, impl=impl)


def test_the_version_is_known():
    assert attention_stock.version() in attention_stock.PACKED_VERSIONS
