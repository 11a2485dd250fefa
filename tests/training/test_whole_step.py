"""Losses that compare the pairs of a step see all of them, over however many devices the rows are spread."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from smallr.losses.preference import LOSSES
from tests.runs import ROOT, environment

pytestmark = pytest.mark.process

PROGRAM = """
import json
import jax, numpy as np
from smallr.losses import TokenScores
from smallr.core.sharding import make_mesh
from smallr.training.objective import Preference, Unpaired
from smallr.training.splits import batch_sharding
from tests.tiny import batch_of, columns_of, pairs

examples = pairs(8)
columns = columns_of(examples)
columns |= {"ref_completion": columns["ref_chosen"], "ref_mismatched": columns["ref_rejected"] - 30}
columns |= {"beta": np.full(8, 0.2, np.float32), "label": np.float32([1, 0, 0, 1, 1, 0, 1, 0])}
batch = batch_of([[0, 1, 2], [3, 4], [5, 6], [7]], examples, columns)
logps = -((batch.target * 7919 % 101) / 50.0) * (batch.role > 0).astype(np.float32)
mesh = make_mesh(2, 2, 1) if jax.device_count() == 4 else make_mesh(1, 1, 1)
found = {}
with jax.set_mesh(mesh):
    place = lambda x: jax.device_put(x, batch_sharding(mesh))
    batch, logps = jax.tree.map(place, batch), place(logps.astype(np.float32))
    assert len(logps.sharding.device_set) == jax.device_count()
    for name in NAMES:
        objective = Unpaired() if name == "kto" else Preference(name, 0.2)
        run = jax.jit(jax.value_and_grad(lambda x, b: objective(TokenScores(x), b, None)[0]))
        value, gradient = run(logps, batch)
        found[name] = [float(value), np.asarray(gradient).ravel().tolist()]
print(json.dumps(found))
"""


def test_four_devices_equal_one():
    names = [*(name for name, loss in LOSSES.items() if loss.whole_step), "kto"]
    assert len(names) == 4
    results = []
    for devices in (1, 4):
        program = f"NAMES = {names!r}\n{PROGRAM}"
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    one, four = results
    for name in names:
        np.testing.assert_allclose(four[name][0], one[name][0], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(four[name][1], one[name][1], rtol=1e-5, atol=1e-7, err_msg=name)
        assert np.any(one[name][1]), name
