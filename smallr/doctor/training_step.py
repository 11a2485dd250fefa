"""Times one training step on pairs: packed rows with prompts once, against one pair a row."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from smallr.config import preference
from smallr.core.sharding import MESH_AXES
from smallr.data.pipeline import global_batch, local_rows
from smallr.doctor.findings import Findings
from smallr.doctor.pairs import draw_lengths, make_step_rows, needed_flops
from smallr.models.attention_choice import Packing, choose
from smallr.models.attention_support import AttentionShape, DeviceFacts
from smallr.models.config import DecoderConfig
from smallr.models.loading import ModelSource, load_decoder
from smallr.training.memory import Setting, estimate
from smallr.training.objective import make_objective
from smallr.training.optimizer import Horizon, make_optimizer, make_schedule
from smallr.training.policy import ModelFunctions
from smallr.training.splits import batch_sharding
from smallr.training.step import Constants, init_state, make_step

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Setup:
    """Says what is timed.

    Attributes:
      name: of the model's size.
      model: the decoder, with dtype and remat.
      rows, row_length: of a packed step, over all devices.
      kind: of the lengths, see `pairs.LENGTHS`.
      steps: that are timed.
    """

    name: str
    model: DecoderConfig
    rows: int
    row_length: int
    kind: str = "short prompts"
    steps: int = 3

    def lengths(self) -> list[tuple[int, int, int]]:
        """Returns more pairs than a step of packed rows holds."""
        longest = self.row_length // 2 if self.kind == "short prompts" else self.row_length
        return draw_lengths(self.kind, max(4, self.rows * self.row_length // 64), longest)


@dataclasses.dataclass(frozen=True)
class Timing:
    """Holds what a step took.

    Attributes:
      pairs: of a step.
      seconds: the least of the timed ones.
      flops: that the pairs need (`pairs.needed_flops`).
      bytes: of a device's memory, by the compiler.
      loss: of the first step; ln 2 less the log-ratio's part.
      attention: that was chosen.
      lengths: of the step's pairs.
    """

    pairs: int
    seconds: float
    flops: float
    bytes: int
    loss: float
    attention: str
    lengths: tuple[tuple[int, int, int], ...]


def measure_step(findings: Findings, setup: Setup, mesh: Mesh, peak: float) -> Timing | None:
    """Adds a step of packed and shared rows beside one of padded rows; None where it does not fit.

    `peak` is the FLOP/s of one device's products in the model's dtype.
    """
    about = f"{setup.name}, {setup.kind}, {setup.model.dtype}"
    if short := _too_large(setup, mesh):
        findings.add("training step", about, f"left out: {short}")
        return None
    lengths = setup.lengths()
    packed = _time(setup, mesh, lengths, setup.rows, setup.row_length, shared=True)
    _add(findings, f"{about}: packed, prompts once", packed, peak * mesh.size)
    longest = -(-max(2 * p + c + r for p, c, r in lengths) // 64) * 64
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = max(1, setup.rows * setup.row_length // longest // parts) * parts
    padded = _time(setup, mesh, lengths, rows, longest, shared=False)
    _add(findings, f"{about}: padded, a pair a row", padded, peak * mesh.size)
    ratio = packed.pairs / packed.seconds / (padded.pairs / padded.seconds)
    findings.add("training step", f"{about}: packed / padded", f"{ratio:.2f} x the pairs a second", ratio=ratio)
    return packed


def _too_large(setup: Setup, mesh: Mesh) -> str:
    """Says why a step would not fit the devices' memory; empty if it does, or the device does not say how much it has."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if not limit:
        return ""
    rows = max(1, setup.rows // (mesh.shape["data"] * mesh.shape["fsdp"]))
    how = {"fsdp": mesh.shape["fsdp"], "tensor": mesh.shape["tensor"], "dtype": setup.model.dtype}
    needed = estimate(setup.model, Setting(rows, setup.row_length, remat=setup.model.remat, **how)).total
    return "" if needed < limit else f"it needs {needed / GIB:.1f} GiB a device, of {limit / GIB:.1f}"


def _time(
    setup: Setup, mesh: Mesh, lengths: Sequence[tuple[int, int, int]], rows: int, row_length: int, *, shared: bool
) -> Timing:
    step = make_step_rows(lengths, rows, row_length, setup.model.vocab_size, shared=shared)
    with jax.set_mesh(mesh):
        shape = AttentionShape.of(setup.model, rows, row_length, examples=step.batch.example.shape[1])
    packing = Packing(step.batch.horizon[: shape.rows], step.batch.positions[: shape.rows])
    with jax.set_mesh(Mesh(np.asarray(jax.local_devices()[:1]).reshape((1,) * len(MESH_AXES)), MESH_AXES)):
        choice = choose(shape, DeviceFacts.of(jax.local_devices()[0]), packing)
    model = dataclasses.replace(setup.model, attention=choice.impl, attention_sequences=choice.sequences)
    with jax.set_mesh(mesh):
        seconds, loss, held = _run(model, mesh, step.batch, rows, setup.steps)
    taken = tuple(lengths[i] for i in step.pairs)
    return Timing(len(taken), seconds, needed_flops(model, taken), held, loss, choice.impl, taken)


def _run(model: DecoderConfig, mesh: Mesh, batch: object, rows: int, steps: int) -> tuple[float, float, int]:
    """Returns the least seconds of a step, the first loss, and bytes on a device."""
    config = preference()
    schedule = make_schedule(config.optimizer, (Horizon(0, 1000),))
    optimizer = make_optimizer(config.optimizer, schedule)
    graphdef, params = nnx.split(load_decoder(ModelSource("random weights", model, None, None, {}), mesh))
    state, sharding = init_state(params, optimizer, 0, mesh)
    run = make_step(
        ModelFunctions(graphdef),
        make_objective(config),
        optimizer,
        schedule,
        sharding,
        mesh,
        chunk=config.compute.logp_chunk,
    )
    split = batch_sharding(mesh)
    held_rows = local_rows(split, rows)
    batch = global_batch(jax.tree.map(lambda x: x[held_rows], batch), held_rows, rows, split)
    constants = Constants.of(denominator=float(np.asarray(batch.example.shape[0])))
    program = run.lower(state, batch, constants).compile()
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    best, losses = float("inf"), []
    for _ in range(steps + 1):
        start = time.perf_counter()
        state, metrics, _ = program(state, batch, constants)
        losses.append(float(metrics["loss"]))
        best = min(best, time.perf_counter() - start) if len(losses) > 1 else best
    return best, losses[0], held - memory.alias_size_in_bytes


def _add(findings: Findings, name: str, timing: Timing, peak: float) -> None:
    rate = timing.flops / timing.seconds
    tokens = sum(map(sum, timing.lengths))
    findings.add(
        "training step",
        name,
        f"{timing.seconds:.3g} s, {timing.pairs} pairs, {tokens / timing.seconds:,.0f} tokens/s with prompts once, MFU "
        f"{rate / peak:.1%} of the measured peak; {timing.bytes / GIB:.1f} GiB a device; attention {timing.attention}",
        wrong=not np.isfinite(timing.loss),
        seconds=timing.seconds,
        pairs=timing.pairs,
        needed_flops=timing.flops,
        mfu=rate / peak,
        bytes=timing.bytes,
    )
