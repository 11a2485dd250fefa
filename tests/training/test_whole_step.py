"""Losses that compare the pairs of a step see all of them, over however many devices the rows are spread."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from smallr.core.sharding import make_mesh
from smallr.losses import TokenScores
from smallr.losses.preference import LOSSES
from smallr.training.objective import Preference, Unpaired
from smallr.training.splits import batch_sharding
from tests.tiny import batch_of, columns_of, pairs

pytestmark = pytest.mark.process


def values(names: list[str]) -> dict[str, list]:
    """Loss and gradient of each objective on rows that are spread over all devices."""
    examples = pairs(8)
    columns = columns_of(examples)
    columns |= {"ref_completion": columns["ref_chosen"], "ref_mismatched": columns["ref_rejected"] - 30}
    columns |= {"beta": np.full(8, 0.2, np.float32), "label": np.float32([1, 0, 0, 1, 1, 0, 1, 0])}
    batch = batch_of([[0, 1, 2], [3, 4], [5, 6], [7]], examples, columns)
    logps = -((batch.target * 7919 % 101) / 50.0) * (batch.role > 0).astype(np.float32)
    mesh = make_mesh(2, 2, 2) if jax.device_count() == 8 else make_mesh(1, 1, 1)
    found = {}
    with jax.set_mesh(mesh):
        place = lambda x: jax.device_put(x, batch_sharding(mesh))  # noqa: E731
        batch, logps = jax.tree.map(place, batch), place(logps.astype(np.float32))
        assert len(logps.sharding.device_set) == jax.device_count()
        for name in names:
            objective = Unpaired() if name == "kto" else Preference(name, 0.2)
            loss = lambda x, b, objective=objective: objective(TokenScores(x), b, None)[0]  # noqa: E731
            value, gradient = jax.jit(jax.value_and_grad(loss))(logps, batch)
            found[name] = [float(value), np.asarray(gradient).ravel().tolist()]
    return found


def test_eight_devices_equal_one(eight_devices):
    names = [*(name for name, loss in LOSSES.items() if loss.whole_step), "kto"]
    assert len(names) == 4
    program = f"import json; from tests.training import test_whole_step as t; print(json.dumps(t.values({names!r})))"
    one, eight = values(names), json.loads(eight_devices(program).stdout)
    for name in names:
        np.testing.assert_allclose(eight[name][0], one[name][0], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(eight[name][1], one[name][1], rtol=1e-5, atol=1e-7, err_msg=name)
        assert np.any(one[name][1]), name
