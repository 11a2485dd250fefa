"""Rows whose tokens are split over eight simulated devices: the loss, the values and the gradients of one device."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from configs.long_rationale import get_config
from smallr.config import preference as preference_config
from smallr.core.errors import UserError
from smallr.core.sharding import MESH_AXES
from smallr.models.attention import attention
from smallr.models.attention_context import _exchange
from smallr.training.checks import check_context, check_run
from tests.models.helpers import packed_rule
from tests.tiny import batch_of, columns_of, pairs, preference, run_step

pytestmark = pytest.mark.process

MESHES = {"context 8": (1, 1, 1, 8)}  # a whole run on other axes too is in test_sharding.py
# Of attention alone: window and soft-cap, on data 1 x fsdp 1 x tensor 2 x context 4.
RULES = [(None, None), (17, 3.0)]
LENGTH = 184  # halves of 23 tokens
LAYOUT = [[(60, 20, 30), (25, 10), (9, 4, 4)], [(1, 1), (128, 30, 7)], [(10, 174)], []]
# The first row is one long causal stretch, the second is packed, and so is what the third and fourth begin with.
ROWS = [[0, 1, 2, 3, 4], [5, 6], [7], [3, 1, 5]]

ON_EIGHT = """
import sys
import numpy as np
from smallr.core.sharding import make_mesh
from tests.integration.test_context import MESHES, case
from tests.tiny import preference, run_step
found = {}
for name, sizes in MESHES.items():
    outcome = run_step(case(), preference(), mesh=make_mesh(*sizes))
    found |= {f"{name}/gradient/{key}": value for key, value in outcome.gradient.items()}
    found |= {f"{name}/examples/{key}": value for key, value in outcome.examples.items()}
    found[f"{name}/loss"] = outcome.metrics["loss"]
import jax
from smallr.models.attention import attention
from tests.integration.test_context import RULES, arrays
with jax.set_mesh(make_mesh(1, 1, 2, 4)):
    for number, (window, softcap) in enumerate(RULES):
        (q, k, v, weights), (positions, horizon) = arrays()
        def loss(q, k, v):
            out = attention(q, k, v, horizon, positions, window, softcap)
            return (out * weights).sum(), out
        (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        found |= {f"attention/{number}/{i}": np.asarray(x) for i, x in enumerate((out, *gradients))}
np.savez(sys.argv[1], **found)
"""


def arrays():
    """Queries, keys, values and a cotangent, and positions and horizons of packed rows, one of them empty."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(len(LAYOUT), LENGTH, heads, 8) for heads in (4, 2, 2, 4)]
    return [2 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)], packed_rule(
        LAYOUT, LENGTH
    )


def case():
    """Four rows of 128 tokens, with scored positions that eight devices divide."""
    examples = pairs(8)
    batch = batch_of(ROWS, examples, columns_of(examples), tokens=128)
    scored = -batch.target.shape[1] % 8
    more = {
        name: np.pad(getattr(batch, name), ((0, 0), (0, scored)))
        for name in ("logit_position", "target", "completion", "role")
    }
    return batch.replace(**more) if hasattr(batch, "replace") else type(batch)(**{**vars(batch), **more})


@pytest.fixture(scope="module")
def one():
    return run_step(case(), preference())


@pytest.fixture(scope="module")
def eight(tmp_path_factory, eight_devices):
    out = tmp_path_factory.mktemp("context") / "found.npz"
    eight_devices(ON_EIGHT, str(out))
    return np.load(out)


@pytest.mark.parametrize("number", range(len(RULES)))
def test_attention_of_split_rows_is_that_of_whole_ones(number, eight):
    (q, k, v, weights), (positions, horizon) = arrays()
    window, softcap = RULES[number]
    out, back = jax.vjp(lambda *x: attention(*x, horizon, positions, window, softcap), q, k, v)
    for i, want in enumerate((out, *back(weights))):
        np.testing.assert_allclose(eight[f"attention/{number}/{i}"], want, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_every_device_computes_as_many_pairs_of_a_causal_row(devices):
    to_first, to_second = _exchange(devices)
    halves = {device: [] for device in range(devices)}
    for own, (first, second) in enumerate(zip(to_first, to_second, strict=True)):
        halves[first[1]].append(2 * own)
        halves[second[1]].append(2 * own + 1)
    assert all(sorted(taken) == [device, 2 * devices - 1 - device] for device, taken in halves.items())


def test_rows_that_cannot_be_split_are_refused():
    config = preference_config()
    config.batch.row_length, mesh = 100, AbstractMesh((1, 1, 1, 8), MESH_AXES)
    with pytest.raises(
        UserError, match=r"row_length=100 cannot be split over mesh.context=8: .* multiple of 16, .* 112"
    ):
        check_context(config, mesh)
    config.batch.row_length, config.batch.scored = 112, 60
    with pytest.raises(UserError, match=r"scored=60: with mesh.context=8 it must be a multiple of 8"):
        check_context(config, mesh)


def test_the_config_of_long_rows_is_for_one_device_and_for_many():
    config = get_config()
    for devices in (1, 16):
        check_run(config, AbstractMesh((1, 1, 1, devices), MESH_AXES))


@pytest.mark.parametrize("mesh", MESHES)
def test_split_rows_give_the_step_of_one_device(mesh, one, eight):
    np.testing.assert_allclose(eight[f"{mesh}/loss"], one.metrics["loss"], rtol=1e-6)
    for name, value in one.examples.items():
        np.testing.assert_allclose(eight[f"{mesh}/examples/{name}"], value, rtol=1e-5, atol=1e-4, err_msg=name)
    for name, value in one.gradient.items():
        # The gradient is read off a change of parameters, so it has their rounding.
        ours = eight[f"{mesh}/gradient/{name}"]
        np.testing.assert_allclose(ours, value, atol=1e-4 * np.abs(value).max() + 5e-7, err_msg=name)
