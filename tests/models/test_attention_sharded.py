"""Attention on eight simulated devices: each computes its own rows by its own tile lists, and nothing is sent."""

from __future__ import annotations

import pytest

CHILD = """
import re, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from smallr.core.sharding import make_mesh
from smallr.models.attention import attention
from smallr.models.attention_choice import random_packing
from smallr.models.attention_support import AttentionShape
from tests.compiling import narrow
narrow()
packing = random_packing(AttentionShape(16, 192, 4, 2, 16, "float32", examples=4), 16, 192)
keys = jax.random.split(jax.random.key(0), 4)
arrays = [jax.random.normal(key, (16, 192, n, 16)) for key, n in zip(keys, (4, 2, 2, 4))]
def run(q, k, v, cotangent, horizon, positions):
    out, pull = jax.vjp(lambda *x: attention(*x, horizon, positions, impl="xla"), q, k, v)
    return out, *pull(cotangent)
whole = jax.jit(run)(*arrays, *packing)
for sizes, heads, kv in (((1, 8, 1), None, None), ((2, 2, 2), "tensor", "tensor")):
    mesh = make_mesh(*sizes)
    split = [NamedSharding(mesh, P(("data", "fsdp"), None, n)) for n in (heads, kv, kv, heads, None, None)]
    split[4:] = [NamedSharding(mesh, P(("data", "fsdp")))] * 2
    with jax.set_mesh(mesh):
        program = jax.jit(run, in_shardings=split, out_shardings=(split[0], *split[:3])).lower(*arrays, *packing).compile()
    sent = re.findall(r"all-(?:reduce|gather|to-all)|collective-permute|reduce-scatter", program.as_text())
    ours = program(*(jax.device_put(x, s) for x, s in zip((*arrays, *packing), split)))
    worst = max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in zip(ours, whole))
    print(sizes, "sent", len(sent), "equal", worst < 1e-5)
"""


@pytest.mark.process
def test_nothing_is_sent_and_the_numbers_are_those_of_one_device(eight_devices):
    lines = eight_devices(CHILD).stdout.splitlines()
    assert lines == ["(1, 8, 1) sent 0 equal True", "(2, 2, 2) sent 0 equal True"]
