"""Soft prompts: the same on one device and on eight, and after a kill."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runs import final_arrays, metrics, on_devices, smoke, train

pytestmark = pytest.mark.slow

FIELDS = {
    "data.train_split": "train[:16]",
    "data.eval": "",
    "soft.length": 5,
    "steps": 4,
    "checkpoint.every": 2,
    "batch.rows": 8,
    "optimizer.learning_rate": 0.01,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    train(smoke("adaptive.prompts", **FIELDS), workdir)
    return workdir


def test_stopped_and_resumed_equals_uninterrupted(tmp_path, whole, monkeypatch):
    class Stop:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def should_stop(self, step: int) -> bool:
            return step == 2

    with monkeypatch.context() as patch:
        patch.setattr("smallr.training.trainer.StopSignal", Stop)
        assert not train(smoke("adaptive.prompts", **FIELDS), tmp_path)["finished"]
    assert train(smoke("adaptive.prompts", **FIELDS), tmp_path)["finished"]
    expected, found = final_arrays(whole), final_arrays(tmp_path)
    assert expected.keys() == found.keys()
    assert any("soft" in name and np.ptp(value) > 0 for name, value in expected.items())
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.process
def test_eight_devices_equal_one(tmp_path, whole, eight_devices):
    fields = FIELDS | {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    eight_devices(on_devices("adaptive.prompts", tmp_path, fields))
    for field in ("loss", "grad_norm"):
        values = [[line[field] for line in metrics(folder)] for folder in (tmp_path, whole)]
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5, err_msg=field)
    ours, theirs = final_arrays(tmp_path), final_arrays(whole)
    for name in (name for name in theirs if name.startswith("params")):
        assert np.linalg.norm(ours[name] - theirs[name]) < 5e-3 * np.linalg.norm(theirs[name]), name
