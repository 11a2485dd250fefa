"""Ways by platform: where the mesh says the platform no other way is traced."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from smallr.core.sharding import by_platform, make_mesh


def _traced(ways=("cpu", "tpu", "default")):
    """A function, and the list of the ways of which it has been traced since."""
    seen = []
    made = {way: lambda x, way=way: seen.append(way) or x + len(way) for way in ways}
    return lambda x: by_platform(x, **made), seen


def test_without_a_mesh_all_are_traced_and_the_devices_own_runs():
    function, seen = _traced()
    assert jax.jit(function)(1.0) == 4.0
    assert set(seen) == {"cpu", "tpu", "default"}
    text = jax.jit(function).trace(1.0).lower(lowering_platforms=("cuda",)).as_text()
    assert "7.0" in text
    assert "3.0" not in text


def test_a_mesh_of_cpu_devices_traces_the_way_of_cpus():
    function, seen = _traced()
    with jax.set_mesh(make_mesh()):
        assert jax.jit(function)(1.0) == 4.0
        assert seen == ["cpu"]
        assert jax.jit(jax.grad(function))(1.0) == 1.0
    function, seen = _traced(("tpu", "default"))
    with jax.set_mesh(make_mesh()):
        assert jax.jit(function)(1.0) == 8.0
    assert seen == ["default"]


@pytest.mark.parametrize(("platform", "ways"), [("tpu", {"tpu"}), ("gpu", {"cpu", "tpu", "default"})])
def test_a_mesh_of_other_devices_traces_theirs(platform, ways):
    function, seen = _traced()
    device = AbstractDevice(device_kind="of a test", num_cores=1, platform=platform)
    mesh = AbstractMesh((1,), ("data",), (AxisType.Explicit,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        jax.jit(function).trace(np.ones((), np.float32))
    assert set(seen) == ways
