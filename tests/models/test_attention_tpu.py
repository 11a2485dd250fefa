"""The TPU kernels' list of tiles; and the kernels compiled for TPUs where libtpu is at hand."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from smallr.models import attention_tpu
from tests.models.helpers import packed_rule
from tests.runs import ROOT


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


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'jax[tpu]'")
def test_the_kernels_compile_for_tpus_and_each_chip_computes_its_own_rows_and_heads():
    slices = ("v5e:2x2", "v6e:2x2", "v5p:2x2x1")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    command = [sys.executable, "-c", CHILD, *slices]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == [word for name in slices for word in (name, "compiled")]
