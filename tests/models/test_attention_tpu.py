"""The TPU kernel, interpreted on the CPU, against the dense mask; and compiled for TPUs where libtpu is at hand."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smallr.models import attention_tpu
from smallr.models.attention import attention
from tests.models.helpers import packed_rule
from tests.models.test_attention import LAYOUT, _dense_jax, _qkv
from tests.runs import ROOT

LENGTH = 300  # three tiles of 128, the last one partly filled


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(attention_tpu, "TILE", 128)


def _both(heads: int, kv_heads: int, window: int | None, softcap: float | None, dtype: str = "float32"):
    """Jitted functions of (q, k, v, cotangent, horizon, positions) to the output and the gradients: kernel, dense."""

    def outcome(f, q, k, v, cotangent):
        out, vjp = jax.vjp(f, q, k, v)
        return out, *vjp(cotangent.astype(out.dtype))

    def kernel(q, k, v, cotangent, horizon, positions):
        return outcome(lambda *x: attention(*x, horizon, positions, window, softcap, impl="tpu"), q, k, v, cotangent)

    def dense(q, k, v, cotangent, horizon, positions):
        arrays = (x.astype(jnp.float32) for x in (q, k, v))
        return outcome(lambda *x: _dense_jax(*x, horizon, positions, window, softcap), *arrays, cotangent)

    return jax.jit(kernel), jax.jit(dense)


def _assert_equal(ours, theirs, tolerance: float):
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, theirs, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=tolerance * max(np.abs(b).max(), 1.0), err_msg=name)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "window", "softcap"), [(6, 2, None, None), (3, 3, 17, 3.0), (2, 1, 1, None), (2, 1, 200, 3.0)]
)
def test_values_and_gradients_are_those_of_the_dense_mask(heads, kv_heads, window, softcap):
    arrays = _qkv(heads, kv_heads, len(LAYOUT), LENGTH)
    positions, horizon = packed_rule(LAYOUT, LENGTH)
    kernel, dense = _both(heads, kv_heads, window, softcap)
    _assert_equal(kernel(*arrays, horizon, positions), dense(*arrays, horizon, positions), 1e-5)


def test_bfloat16_stays_within_its_rounding():
    arrays = _qkv(4, 2, len(LAYOUT), LENGTH, dtype="bfloat16")
    positions, horizon = packed_rule(LAYOUT, LENGTH)
    kernel, dense = _both(4, 2, None, None)
    ours = kernel(*arrays, horizon, positions)
    assert all(x.dtype == jnp.bfloat16 for x in ours)
    _assert_equal(ours, dense(*arrays, horizon, positions), 2e-2)


# An example: a prefix and its branches, lengths of each.
_EXAMPLES = st.lists(st.lists(st.integers(1, 140), min_size=2, max_size=3).map(tuple), min_size=0, max_size=6)
_MADE = {}


def _fitting(row: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    kept, used = [], 0
    for example_ in row:
        if used + sum(example_) <= LENGTH:
            kept.append(example_)
            used += sum(example_)
    return kept


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(_EXAMPLES, min_size=2, max_size=2), windowed=st.booleans())
@example(rows=[[(128, 128)], [(1, 127), (127, 1)]], windowed=False)  # ends on the edges of tiles
def test_any_packing_equals_the_dense_mask(rows, windowed):
    if windowed not in _MADE:
        _MADE[windowed] = _both(2, 1, 40 if windowed else None, None)
    kernel, dense = _MADE[windowed]
    positions, horizon = packed_rule([_fitting(row) for row in rows], LENGTH)
    arrays = _qkv(2, 1, 2, LENGTH)
    _assert_equal(kernel(*arrays, horizon, positions), dense(*arrays, horizon, positions), 1e-5)


def test_only_tiles_with_a_visible_pair_are_listed():
    positions, horizon = packed_rule([[(100, 20, 30), (200, 30)], [(384,)]], 384)
    steps = attention_tpu._steps(jnp.asarray(horizon), jnp.asarray(positions), 128, None)
    active = np.asarray(steps.flags) & attention_tpu.ACTIVE > 0
    listed = [set(zip(*np.asarray([steps.query, steps.key])[:, row, active[row]], strict=True)) for row in (0, 1)]
    # Row 0: the first example ends in tile 1, at token 150, which the third tile's queries do not see.
    assert listed[0] == {(0, 0), (1, 0), (1, 1), (2, 1), (2, 2)}
    assert listed[1] == {(i, j) for i in range(3) for j in range(i + 1)}


CHILD = """
import sys
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from smallr.models.attention import attention
for name in sys.argv[1:]:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    shape = (1, len(devices) // 2, 2)
    mesh = jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)
    def array(heads, dtype, *spec):
        shape = (len(devices) // 2, 1000, *heads)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))
    q, k = (array((heads, 64), "bfloat16", "fsdp", None, "tensor") for heads in (4, 2))
    rule = array((), "int32", "fsdp")
    def f(q, k, v, horizon, positions):
        def loss(q, k, v):
            return jnp.sum(attention(q, k, v, horizon, positions, 300, 50.0).astype(jnp.float32))
        return jax.grad(loss, (0, 1, 2))(q, k, v)
    with jax.set_mesh(mesh):
        text = jax.jit(f).lower(q, k, k, rule, rule).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3, text[:2000]
    assert "all-gather" not in text and "all-to-all" not in text
    print(name, "compiled")
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'smallr[tpu]'")
def test_the_kernels_compile_for_tpus_and_each_chip_computes_its_own_rows_and_heads():
    slices = ("v5e:2x2", "v6e:2x2", "v5p:2x2x1")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    command = [sys.executable, "-c", CHILD, *slices]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [word for name in slices for word in (name, "compiled")]
