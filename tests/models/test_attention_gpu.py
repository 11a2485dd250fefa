"""The GPU kernels lowered for CUDA, which needs no GPU; on a GPU also run with the tiles of real sizes."""

from __future__ import annotations

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from smallr.models import attention_gpu
from smallr.models.attention import attention
from smallr.models.tiles import tile_lists, visible_tiles
from tests.models.helpers import packed_rule
from tests.models.test_attention import _dense_jax, _qkv


def _gradients(q, k, v, horizon, positions, impl="gpu"):
    def loss(q, k, v):
        return jnp.sum(attention(q, k, v, horizon, positions, 300, 50.0, impl=impl).astype(jnp.float32))

    return jax.grad(loss, (0, 1, 2))(q, k, v)


def _lowered(shape: tuple[int, ...], kv_heads: int, dtype: str, impl: str = "gpu", devices: int = 1) -> str:
    """The program for CUDA."""
    rows, length, _, dim = shape
    q, k = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((rows, length, kv_heads, dim), dtype)
    rule = jax.ShapeDtypeStruct((rows, length), "int32")
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = AbstractMesh(
        (1, devices, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, abstract_device=device
    )
    program = jax.jit(_gradients, static_argnums=5)
    with jax.sharding.use_abstract_mesh(mesh), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
        return program.trace(q, k, k, rule, rule, impl).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("shape", "kv_heads", "dtype"),
    [((2, 1000, 14, 64), 2, "bfloat16"), ((1, 50, 3, 80), 3, "float32"), ((1, 256, 4, 256), 1, "bfloat16")],
)
def test_the_kernels_are_lowered_for_cuda(shape, kv_heads, dtype):
    text = _lowered(shape, kv_heads, dtype)
    assert text.count("custom_call @__gpu$xla.gpu.triton") == 3
    assert "stablehlo.dot_general" not in text, "all products are in the kernels"


def test_each_device_runs_the_kernels_on_its_own_rows():
    text = _lowered((8, 128, 4, 64), 2, "bfloat16", devices=4)
    calls = [line for line in text.splitlines() if "custom_call @__gpu$xla.gpu.triton" in line]
    assert len(calls) == 3
    assert all("tensor<2x128x" in call.split(" : ")[-1] for call in calls)


def test_a_jax_without_the_triton_backend_says_what_to_set(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr(pallas, "triton", raising=False)
    with pytest.raises(NotImplementedError, match=r"set compute\.attention=xla"):
        _lowered((1, 80, 2, 64), 2, "bfloat16")


def test_without_a_measurement_auto_is_not_the_kernel():
    assert "xla.gpu.triton" not in _lowered((2, 128, 4, 64), 2, "bfloat16", impl="auto")


@pytest.mark.parametrize(
    ("shape", "dtype", "tile"),
    [
        ((1, 4096, 14, 64), "bfloat16", 64),
        ((1, 4096, 14, 256), "bfloat16", 32),
        ((1, 4096, 14, 64), "float32", 32),
        ((1, 20, 14, 64), "bfloat16", 32),
        ((1, 3, 1, 8), "float32", 16),
        ((1, 4096, 1, 512), "float32", 16),
    ],
)
def test_tiles_fit_the_chip(shape, dtype, tile):
    assert attention_gpu._tile(jax.ShapeDtypeStruct(shape, dtype)) == tile


def test_lists_hold_the_tiles_with_a_visible_pair_and_no_other():
    """Three tiles of 128; the second row is one example, the first has one that ends at token 150."""
    positions, horizon = (jnp.asarray(x) for x in packed_rule([[(100, 20, 30), (200, 30)], [(384,)]], 384))
    for by_key in (False, True):
        visible = visible_tiles(horizon, positions, 128, None)
        order, count = tile_lists(visible.swapaxes(1, 2) if by_key else visible)
        listed = [[list(map(int, order[b, i, : count[b, i]])) for i in range(3)] for b in range(2)]
        assert listed[0] == ([[0, 1], [1, 2], [2]] if by_key else [[0], [0, 1], [1, 2]])
        assert listed[1] == ([[0, 1, 2], [1, 2], [2]] if by_key else [[0], [0, 1], [0, 1, 2]])


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 2e-2)])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(14, 2, 64), (12, 2, 128), (4, 4, 80), (8, 4, 256)])
def test_on_a_gpu_the_kernels_equal_the_dense_mask(heads, kv_heads, dim, dtype, tolerance):
    layout = [[(400, 150, 250), (60, 60, 60)], [(1000,)]]
    positions, horizon = packed_rule(layout, 1000)
    q, k, v, cotangent = _qkv(heads, kv_heads, 2, 1000, dim=dim, dtype=dtype)

    def outcome(f, *arrays):
        out, vjp = jax.vjp(f, *arrays)
        return out, *vjp(cotangent.astype(out.dtype))

    ours = outcome(lambda *x: attention(*x, horizon, positions, 300, 50.0, impl="gpu"), q, k, v)
    wide = (x.astype(jnp.float32) for x in (q, k, v))
    theirs = outcome(lambda *x: _dense_jax(*x, horizon, positions, 300, 50.0), *wide)
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, theirs, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1.0), err_msg=name)
