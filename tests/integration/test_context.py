"""Rows whose tokens are split over eight simulated devices: the loss, the values and the gradients of one device."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny import batch_of, columns_of, pairs, preference, run_step

pytestmark = pytest.mark.process

MESHES = {"context 8": (1, 1, 1, 8), "fsdp 2 x tensor 2 x context 2": (1, 2, 2, 2), "data 2 x context 4": (2, 1, 1, 4)}
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
np.savez(sys.argv[1], **found)
"""


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


@pytest.mark.parametrize("mesh", MESHES)
def test_split_rows_give_the_step_of_one_device(mesh, one, eight):
    np.testing.assert_allclose(eight[f"{mesh}/loss"], one.metrics["loss"], rtol=1e-6)
    for name, value in one.examples.items():
        np.testing.assert_allclose(eight[f"{mesh}/examples/{name}"], value, rtol=1e-5, atol=1e-4, err_msg=name)
    for name, value in one.gradient.items():
        # The gradient is read off a change of parameters, so it has their rounding.
        ours = eight[f"{mesh}/gradient/{name}"]
        np.testing.assert_allclose(ours, value, atol=1e-4 * np.abs(value).max() + 5e-7, err_msg=name)
