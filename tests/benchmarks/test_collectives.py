"""What the compiled step sends between devices: weights layer by layer, nothing of the batch, no gradient twice."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys

import pytest

from benchmarks.abstract_step import SHAPES
from tests.runs import ROOT, environment

pytestmark = pytest.mark.process

TINY = SHAPES["tiny"]
ROWS, LENGTH = 8, 160
SMALL = 16 * 4  # values per example; token ids are ints
# Compiles the step of each case for a topology, and prints what `collectives_of` gives.
CHILD = f"""
import dataclasses, json, sys
from benchmarks.abstract_step import SHAPES, Pairs, abstract_step
from benchmarks.hlo import analyse
from benchmarks.tpu_compile import make_devices, mesh_of, read_config
topology, config, found = sys.argv[1], read_config("configs/cogpo.py").unlock(), {{}}
for arguments in sys.argv[2:]:
    sizes, micro, reference = arguments.split(":")
    config.batch.accumulation = int(micro)
    config.objective.reference = reference
    model = dataclasses.replace(SHAPES["tiny"], dtype="bfloat16", remat="full")
    pairs = Pairs({ROWS} * config.batch.accumulation, {LENGTH}, prompt=16, completion=16)
    step = abstract_step(model, config, mesh_of(make_devices(topology), sizes), pairs)
    program = analyse(step.compile().as_text(), step.mesh.size, step.dynamic_trips())
    found[arguments] = [
        (c.kind, c.shape.dtype, c.shape.dims, len(c.groups[0]), c.times, c.received) for c in program.collectives
    ]
print(json.dumps(found))
"""


def squeezed(dims: list[int]) -> tuple[int, ...]:
    return tuple(sorted(size for size in dims if size > 1))


def weights(tensor: int) -> tuple[set[tuple[int, ...]], tuple[int, ...]]:
    """Shapes of one layer's matrices, and of the embedding, where the width is whole and `tensor` splits the rest."""
    d, dim, heads, kv = TINY.d_model, TINY.head_dim, TINY.num_heads // tensor, TINY.num_kv_heads // tensor
    layer = {squeezed(s) for s in ([d, heads, dim], [d, kv, dim], [d, TINY.d_ff // tensor])}
    return layer, squeezed([TINY.vocab_size // tensor, d])


@pytest.fixture(scope="module")
def simulated(eight_devices):
    """Kind, dtype, dims, group, times and bytes of every collective of each case `mesh:accumulation:reference`."""
    cases = ("1,8,1:1:cached", "2,2,2:1:cached", "1,8,1:2:live")
    return json.loads(eight_devices(CHILD, "cpu:8", *cases).stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("case", "tensor", "passes"), [("1,8,1:1:cached", 1, 1), ("2,2,2:1:cached", 2, 1), ("1,8,1:2:live", 1, 2)]
)
def test_only_weights_are_gathered_a_layer_at_a_time_and_the_head_once_a_pass(simulated, case, tensor, passes):
    check_gathers(simulated[case], tensor, micro_batches=passes, forwards=2 * passes if "live" in case else passes)


def check_gathers(collectives: list, tensor: int, micro_batches: int, forwards: int) -> None:
    layer, head = weights(tensor)
    seen = dict.fromkeys((*layer, head), 0.0)
    for kind, dtype, dims, _, times, _ in collectives:
        if kind != "all-gather" or dtype[0] in "su" or math.prod(dims) <= SMALL:
            continue
        shape = squeezed(dims)
        # A part of the vocabulary at a time is the head too.
        if shape not in seen and max(shape) > TINY.d_ff and min(shape) == TINY.d_model:
            times, shape = times * max(shape) / max(head), head
        assert shape in seen, (dtype, dims, times)
        seen[shape] += times
    # Forward, again in the backward pass (remat), and for the gradient of the inputs.
    counts = {squeezed([TINY.d_model, TINY.d_ff // tensor]): 3}
    for shape in layer:
        passes = forwards + 2 * micro_batches
        assert 0 < seen[shape] <= TINY.num_layers * passes * counts.get(shape, 2), (shape, seen)
    assert 0 < seen[head] <= 1.01 * (forwards + micro_batches), seen


@pytest.mark.parametrize("case", ["1,8,1:1:cached", "2,2,2:1:cached"])
def test_the_gradient_of_the_head_is_added_up_once(simulated, case):
    reduced = sum(
        received
        for kind, _, dims, _, _, received in simulated[case]
        if kind in ("all-reduce", "reduce-scatter") and max(dims, default=0) > 10 * TINY.d_model and LENGTH not in dims
    )
    table = 4 * TINY.vocab_size * TINY.d_model
    # An all-reduce of the head's gradient receives twice its bytes; over `data` that of the lookup comes to it.
    assert 0 < reduced <= 2 * table


def test_the_lookup_exchanges_activations_and_not_the_table(simulated):
    exchanged = [item for item in simulated["1,8,1:1:cached"] if item[0] == "all-to-all"]
    activations = 4 * (ROWS // 8) * LENGTH * TINY.d_model
    assert sum(item[5] for item in exchanged) == pytest.approx(2 * activations * 7 / 8)  # forward and backward


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'jax[tpu]'")
def test_the_program_of_a_tpu_slice_scatters_the_gradient_of_the_head():
    command, env = [sys.executable, "-c", CHILD, "v5e:2x4", "1,8,1:1:cached"], environment(8, TPU_SKIP_MDS_QUERY="1")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])["1,8,1:1:cached"]
    check_gathers(found, 1, 1, 1)
    table = 4 * TINY.vocab_size * TINY.d_model
    kinds = {
        kind: received for kind, _, dims, _, _, received in found if kind != "all-gather" and TINY.vocab_size in dims
    }
    assert kinds == {"reduce-scatter": table * 7 / 8}
