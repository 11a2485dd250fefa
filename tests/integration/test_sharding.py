"""One device, eight simulated devices, two processes: the same training."""

from __future__ import annotations

import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.runs import ROOT, command, environment, final_arrays, metrics, run
from tests.tiny import batch_of, columns_of, pairs, preference, run_step

CONFIG = "configs/cogpo.py:smoke"
OVERRIDES = ("--config.batch.rows=8", "--config.steps=3", "--config.eval_every=0", "--config.checkpoint.every=3")


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    run(CONFIG, workdir, *OVERRIDES)
    return workdir


def assert_same_training(workdir, one_device):
    for split, fields in (("train", ("loss", "grad_norm", "margin")), ("eval", ("loss", "margin"))):
        ours, theirs = metrics(workdir, split), metrics(one_device, split)
        assert len(ours) == len(theirs) > 1
        for field in fields:
            np.testing.assert_allclose(
                [line[field] for line in ours], [line[field] for line in theirs], rtol=1e-4, atol=1e-5, err_msg=field
            )
    ours, theirs = final_arrays(workdir), final_arrays(one_device)
    for name, value in theirs.items():
        if name.startswith("params"):
            # Adam divides by the gradient's size, so single weights with next to no gradient may differ more.
            difference = np.linalg.norm(ours[name] - value) / np.linalg.norm(value)
            assert difference < 1e-4, (name, difference)


def test_eight_devices_as_data_2_fsdp_2_tensor_2_equal_one(tmp_path, one_device):
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    done = run(CONFIG, tmp_path, *OVERRIDES, *mesh, devices=8)
    assert "mesh data 2 x fsdp 2 x tensor 2" in done.stdout
    assert "xla (auto)" in done.stdout, "the implementation of attention is told"
    assert "entries (by platform)" in done.stdout, "and how the head walks the vocabulary"
    assert_same_training(tmp_path, one_device)


def test_eight_devices_with_micro_batches_and_a_live_reference_equal_one(tmp_path, one_device):
    more = (
        "--config.mesh.fsdp=4",
        "--config.mesh.tensor=2",
        "--config.batch.accumulation=2",
        "--config.objective.reference=live",
    )
    run(CONFIG, tmp_path, *OVERRIDES, *more, devices=8)
    assert_same_training(tmp_path, one_device)


def test_state_is_split_over_eight_devices_and_gradients_are_those_of_one(tmp_path):
    program = """
import sys
import jax, numpy as np, optax
from smallr.core.sharding import make_mesh
from smallr.training.step import init_state
from tests.tiny import batch_of, columns_of, decoder, pairs, preference, run_step
mesh = make_mesh(2, 2, 2)
with jax.set_mesh(mesh):
    state, _ = init_state(decoder()[1], optax.adamw(1e-3), 0, mesh)
    arrays = [x for x in jax.tree.leaves(state) if x.ndim > 2]
    assert len(arrays) == 3 * 7, len(arrays)  # parameters and both moments
    for x in arrays:
        assert x.addressable_shards[0].data.size * 4 == x.size, (x.shape, x.sharding)
examples = pairs(8)
batch = batch_of([[0, 1, 2], [3, 4], [5, 6], [7]], examples, columns_of(examples))
outcome = run_step(batch, preference(), mesh=mesh)
np.savez(sys.argv[1], loss=outcome.metrics["loss"], **outcome.gradient)
"""
    out = tmp_path / "gradient.npz"
    subprocess.run([sys.executable, "-c", program, str(out)], cwd=ROOT, env=environment(8), check=True, timeout=120)
    eight = np.load(out)
    examples = pairs(8)
    one = run_step(batch_of([[0, 1, 2], [3, 4], [5, 6], [7]], examples, columns_of(examples)), preference())
    np.testing.assert_allclose(eight["loss"], one.metrics["loss"], rtol=1e-6)
    assert len(one.gradient) == len(eight) - 1
    for name, value in one.gradient.items():
        # The gradient is read off a change of parameters, so it has their rounding.
        np.testing.assert_allclose(eight[name], value, atol=1e-4 * np.abs(value).max() + 5e-7, err_msg=name)


def test_two_processes_equal_one(tmp_path, one_device):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for index in range(2):
        joining = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={index}")
        # Only process 0 finds the cache of reference log-probs: the others must take its word.
        extra = {"SMALLR_CACHE": str(tmp_path / "cache")} if index else {}
        processes.append(
            subprocess.Popen(
                command(CONFIG, tmp_path / "run", *OVERRIDES, "--distributed", *joining, "--config.mesh.fsdp=4"),
                cwd=ROOT,
                env=environment(2, **extra),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "4 x cpu on 2 host(s)" in outputs[0]
    assert "Held-out" not in outputs[1]
    assert_same_training(tmp_path / "run", one_device)
