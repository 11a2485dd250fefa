"""One device, eight simulated devices, two processes: the same training."""

from __future__ import annotations

import socket
import sys

import numpy as np
import pytest

from tests.compiling import narrowed
from tests.runs import command, environment, final_arrays, metrics, on_devices, overrides, smoke, train
from tests.tiny import batch_of, columns_of, pairs, preference, run_step

pytestmark = pytest.mark.process

CONFIG = "configs/cogpo.py:smoke"
FIELDS = {"batch.rows": 8, "batch.row_length": 384, "steps": 3, "eval_every": 0, "checkpoint.every": 3}
OVERRIDES = overrides(FIELDS)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    train(smoke("cogpo", **FIELDS), workdir)
    return workdir


def assert_same_training(workdir, one_device):
    for split, fields in (("train", ("loss", "grad_norm", "margin")), ("eval", ("loss", "margin"))):
        ours, theirs = metrics(workdir, split), metrics(one_device, split)
        assert len(ours) == len(theirs) > 1
        for field in fields:
            np.testing.assert_allclose(
                [line[field] for line in ours], [line[field] for line in theirs], rtol=1e-4, atol=5e-5, err_msg=field
            )
    ours, theirs = final_arrays(workdir), final_arrays(one_device)
    for name, value in theirs.items():
        if name.startswith("params"):
            # Adam divides by the gradient's size, so single weights with next to no gradient may differ more.
            difference = np.linalg.norm(ours[name] - value) / np.linalg.norm(value)
            assert difference < 1e-4, (name, difference)


def test_eight_devices_as_data_2_fsdp_2_tensor_2_equal_one(tmp_path, one_device, eight_devices):
    fields = FIELDS | {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "optimizer.shard_over_data": True}
    done = eight_devices(on_devices("cogpo", tmp_path, fields))
    assert "mesh data 2 x fsdp 2 x tensor 2" in done.stdout
    assert "xla, the one candidate on cpu" in done.stdout, "the implementation of attention is told"
    assert "entries (by platform)" in done.stdout, "and how the head walks the vocabulary"
    assert_same_training(tmp_path, one_device)


def test_eight_devices_with_split_rows_micro_batches_and_a_live_reference_equal_one(
    tmp_path, one_device, eight_devices
):
    mesh = {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.context": 2}
    more = mesh | {"batch.accumulation": 2, "objective.reference": "live"}
    eight_devices(on_devices("cogpo", tmp_path, FIELDS | more))
    assert_same_training(tmp_path, one_device)


def test_state_is_split_over_eight_devices_and_gradients_are_those_of_one(tmp_path, eight_devices):
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
    eight_devices(program, str(out))
    eight = np.load(out)
    examples = pairs(8)
    one = run_step(batch_of([[0, 1, 2], [3, 4], [5, 6], [7]], examples, columns_of(examples)), preference())
    np.testing.assert_allclose(eight["loss"], one.metrics["loss"], rtol=1e-6)
    assert len(one.gradient) == len(eight) - 1
    for name, value in one.gradient.items():
        # The gradient is read off a change of parameters, so it has their rounding.
        np.testing.assert_allclose(eight[name], value, atol=1e-4 * np.abs(value).max() + 5e-7, err_msg=name)


def in_processes(forks, count, arguments, devices, **options):
    """Runs `python ARGUMENTS(port, index)` in processes that are joined; what each printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return forks.run(
        [arguments(port, index) for index in range(count)],
        [environment(devices, **(options if index else {})) for index in range(count)],
    )


def test_two_processes_that_share_every_row_equal_one(tmp_path, one_device, forks):
    """The tensor axis across the processes: both need all rows, and shards of all parameters."""

    def arguments(port, index):
        joining = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={index}")
        mesh = ("--config.mesh.fsdp=1", "--config.mesh.tensor=2")
        return narrowed(command(CONFIG, tmp_path / "run", *OVERRIDES, "--distributed", *joining, *mesh))[1:]

    # Only process 0 finds the cache of reference log-probs: the other must take its word.
    outputs = in_processes(forks, 2, arguments, 1, SMALLR_CACHE=str(tmp_path / "cache"))
    assert "2 x cpu on 2 host(s)" in outputs[0]
    assert "Held-out" not in outputs[1]
    assert_same_training(tmp_path / "run", one_device)


FOUR_PROCESSES = """
import dataclasses, sys
import jax, numpy as np, optax
port, index, count, out = sys.argv[1:]
if int(count) > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(count), int(index))
from smallr.core.sharding import make_mesh
from smallr.data.packing import PackingPlan, Sizes
from smallr.training.evaluation import collect
from smallr.training.policy import ModelFunctions
from smallr.training.references import Reference
from smallr.training.splits import Split
from smallr.training.step import Constants, Evaluation, init_state, make_step
from tests.tiny import CONFIG, columns_of, decoder, pairs, preference

CONFIG = dataclasses.replace(CONFIG, num_layers=1, remat="none")  # four processes compile it side by side
examples = pairs(40)
plan = PackingPlan(Sizes.of(examples), 8, 64, seed=3)
split = Split("train", examples, plan, columns_of(examples), ("chosen", "rejected"))
found = {}
for sizes in [(2, 2, 1), (1, 2, 2)] if int(count) > 1 else [(1, 1, 1)]:
    # A rate of 0.5 makes the gradient grow from 10 to 42 in three steps, and rounding with it, to 1e-4.
    mesh, optimizer, schedule = make_mesh(*sizes), optax.sgd(0.02), optax.constant_schedule(0.02)
    with jax.set_mesh(mesh):
        graphdef, start = decoder(CONFIG)
        reference = Reference.moving(2, 0.5)
        state, sharding = init_state(start, optimizer, 0, mesh, reference)
        functions, objective = ModelFunctions(graphdef), preference("live")
        step = make_step(functions, objective, optimizer, schedule, sharding, mesh, chunk=61, reference=reference)
        name = "x".join(map(str, sizes))
        for batch in split.batches(mesh, 0, 3):
            state, metrics, _ = step(state, batch, Constants.of())
            found.setdefault(f"{name}/loss", []).append(float(metrics["loss"]))
            found.setdefault(f"{name}/grad_norm", []).append(float(metrics["grad_norm"]))
        if sizes == (1, 2, 2):
            continue  # rows are spread over processes by the other mesh
        evaluation = Evaluation(functions, objective, mesh, chunk=61, reference=reference)
        values = collect(lambda batch: evaluation(state.params, batch, state.reference), split.one_pass(mesh), 40)
        found |= {f"{name}/{key}": values[key] for key in ("logp_chosen", "ratio_rejected")}
if int(index) == 0:
    np.savez(out, **found)
"""


def test_four_processes_equal_one_on_every_axis(tmp_path, monkeypatch, forks):
    """Between processes lie data and fsdp on the first mesh, fsdp and tensor on the second."""

    def arguments(port, index):
        return ["-c", FOUR_PROCESSES, str(port), str(index), "4", str(tmp_path / "4.npz")]

    in_processes(forks, 4, arguments, 1)
    monkeypatch.setattr(sys, "argv", ["-c", "0", "0", "1", str(tmp_path / "1.npz")])
    exec(compile(FOUR_PROCESSES, "<program>", "exec"), {"__name__": "__program__"})
    four, one = np.load(tmp_path / "4.npz"), np.load(tmp_path / "1.npz")
    names = [name.split("/")[1] for name in one]
    assert len(names) == 4
    for mesh, compared in (("2x2x1", names), ("1x2x2", ["loss", "grad_norm"])):
        for name in compared:
            # Log-ratios are differences of sums over tokens near 50 nats; other rows would differ by whole nats.
            np.testing.assert_allclose(
                four[f"{mesh}/{name}"], one[f"1x1x1/{name}"], rtol=2e-5, atol=2e-4, err_msg=f"{mesh} {name}"
            )
