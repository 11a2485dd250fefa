"""Runs a whole check-up, within its minutes: what is over them is left out, and said so."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.doctor import machine, speed, torch_step
from smallr.doctor.attention import check_rules, measure_candidates
from smallr.doctor.findings import Findings
from smallr.doctor.head import measure_head
from smallr.doctor.pairs import make_step_rows, needed_flops
from smallr.doctor.sampling import measure_sampling
from smallr.doctor.training_step import GIB, Setup, measure_step
from smallr.models.config import DecoderConfig
from smallr.models.sizes import SIZES

MODELS: Mapping[str, DecoderConfig] = {
    "0.1B": DecoderConfig(49152, 30, 576, 9, 3, 64, 1536, rope_theta=1e5, tie_embeddings=True),
    "0.5B": SIZES["qwen2.5-0.5b"],
    "1.5B": SIZES["qwen2.5-1.5b"],
}
MINUTES = {True: 3.0, False: 8.0}  # with and without `quick`
PEERS = ("torch",)


@dataclasses.dataclass(frozen=True)
class Options:
    """Says how a machine is checked.

    Attributes:
      quick: few and small measurements.
      dtype: of attention, head, step and sampling.
      peer: runs a step beside ours, of `PEERS`; empty: none.
      models: that are trained and sampled, by name; empty: chosen by the platform.
      minutes: after which nothing more is begun; 0: `MINUTES`.
    """

    quick: bool = False
    dtype: str = "bfloat16"
    peer: str = ""
    models: Mapping[str, DecoderConfig] = dataclasses.field(default_factory=dict)
    minutes: float = 0.0


def check_up(options: Options, say: Callable[[str], None]) -> Findings:
    """Measures this machine; all processes of a run take part and find the same.

    Args:
      options: how.
      say: is told what takes the next seconds.

    Raises:
      UserError: a peer that is not installed.
    """
    if options.peer and not torch_step.is_installed():
        raise UserError("--peer=torch: PyTorch is not installed here; pip install torch, or leave --peer out")
    findings, mesh, clock = Findings(), make_mesh(1, -1, 1), _Clock(options.minutes or MINUTES[options.quick])
    setups = _setups(options, mesh)
    say("the machine")
    findings.attempt("machine", lambda: machine.describe(findings))
    if options.peer:  # first, while JAX holds no memory
        say("PyTorch's step")
        findings.attempt("peer", lambda: _add_peer(findings, setups[0]))
    say("products, memory, collectives")
    peaks: dict[str, float] = {}
    findings.attempt("speed", lambda: peaks.update(speed.measure_device(findings, options.quick)))
    findings.attempt("speed", lambda: speed.measure_collectives(findings, mesh, options.quick))
    for name, part in _parts(findings, options, setups, mesh, peaks).items():
        section = name.partition(":")[0]
        if clock.is_over():
            findings.add(section, "", f"left out: {clock.minutes:g} minutes are over")
            continue
        say(name)
        findings.attempt(section, part)
    if options.peer and peaks:
        findings.attempt("peer", lambda: _compare(findings, setups[0], peaks))
    findings.add("machine", "check-up", f"took {clock.seconds():.0f} s", seconds=clock.seconds())
    return findings


def _parts(
    findings: Findings, options: Options, setups: list[Setup], mesh: Mesh, peaks: Mapping[str, float]
) -> dict[str, Callable[[], Any]]:
    """Returns what is measured, the most telling first."""
    first = setups[0]
    quick = options.quick
    parts: dict[str, Callable[[], Any]] = {
        "attention rule": lambda: check_rules(findings, 160 if quick else 640),
        "attention": lambda: _candidates(findings, first, mesh),
        "head": lambda: measure_head(
            findings, options.dtype, 256 if quick else 2048, first.model.d_model, first.model.vocab_size
        ),
    }
    for setup in setups:
        name = f"training step: {setup.name}, {setup.kind}"
        parts[name] = lambda setup=setup: measure_step(findings, setup, mesh, peaks.get(options.dtype, math.nan))
    slots, new = (8, 32) if quick else (32, 128)
    parts["sampling"] = lambda: measure_sampling(findings, first.name, first.model, mesh, slots, new)
    return parts


def _setups(options: Options, mesh: Mesh) -> list[Setup]:
    """Returns the steps that are timed, as large as the platform bears."""
    cpu = jax.default_backend() == "cpu"
    names = ("0.1B",) if cpu or options.quick else tuple(MODELS)
    models = options.models or {name: MODELS[name] for name in names}
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    rows, length = (2, 256 if options.quick else 512) if cpu else (16, 2048)
    rows, steps = max(1, rows // parts) * parts, 2 if options.quick else 4
    setups = []
    for name, model in models.items():
        model = dataclasses.replace(model, dtype=options.dtype, remat="dots")
        kinds = ("short prompts",) if options.quick else ("short prompts", "long prompts")
        setups += [Setup(name, model, rows, length, kind, steps) for kind in kinds]
    return setups


def _candidates(findings: Findings, setup: Setup, mesh: Mesh) -> None:
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    measure_candidates(findings, setup.name, setup.model, max(1, setup.rows // parts), setup.row_length)


# ---- A peer --------------------------------------------------------------------------------------------------


def _packed_lengths(setup: Setup) -> list[tuple[int, int, int]]:
    """Returns the lengths of the pairs that our packed step holds."""
    lengths = setup.lengths()
    step = make_step_rows(lengths, setup.rows, setup.row_length, setup.model.vocab_size, shared=True)
    return [lengths[i] for i in step.pairs]


def _add_peer(findings: Findings, setup: Setup) -> None:
    """Adds the peer's peaks and its step on the pairs of our packed step."""
    if jax.process_index():
        return
    fields = dataclasses.asdict(setup.model)
    taken = _packed_lengths(setup)
    found = torch_step.run_peer(fields, taken, setup.model.dtype, setup.steps)
    if "error" in found:
        findings.add("peer", "torch", f"failed: {found['error']}")
        return
    for dtype, peak in found["peaks"].items():
        findings.add("peer", f"torch: matmul {dtype}", f"{peak / 1e12:.3g} TFLOP/s", flops=peak)
    share = needed_flops(setup.model, taken) / found["seconds"] / found["peaks"][setup.model.dtype]
    how = "torch.compile" if found["compiled"] else "not compiled"
    findings.add(
        "peer",
        "torch: training step",
        f"{found['seconds']:.3g} s, {len(taken)} pairs of {setup.name}, {setup.kind}, {setup.model.dtype}, MFU {share:.1%} of "
        f"its own peak; {found['bytes'] / GIB:.1f} GiB; torch {found['version']} ({how}), {found['device']}",
        seconds=found["seconds"],
        pairs=len(taken),
        mfu=share,
        bytes=found["bytes"],
    )


def _compare(findings: Findings, setup: Setup, peaks: Mapping[str, float]) -> None:
    """Adds what our step and products are beside the peer's."""
    theirs = findings.get("peer", "torch: training step")
    about = f"{setup.name}, {setup.kind}, {setup.model.dtype}: packed, prompts once"
    ours = findings.get("training step", about)
    if theirs is None or ours is None:
        return
    ratio = theirs.numbers["seconds"] / ours.numbers["seconds"]
    peak = findings.get("peer", f"torch: matmul {setup.model.dtype}").numbers["flops"]
    findings.add(
        "peer",
        "smallr / torch",
        f"{ratio:.2f} x the pairs a second, where our products run at {peaks[setup.model.dtype] / peak:.2f} x theirs; shares "
        f"of each one's own peak {ours.numbers['mfu']:.1%} and {theirs.numbers['mfu']:.1%}",
        ratio=ratio,
        peaks_ratio=peaks[setup.model.dtype] / peak,
    )


class _Clock:
    """Says when the minutes are over; all processes hear it from process 0, or some would wait for others in vain."""

    def __init__(self, minutes: float):
        self.minutes, self._start = minutes, time.monotonic()

    def seconds(self) -> float:
        """Returns seconds since the start."""
        return time.monotonic() - self._start

    def is_over(self) -> bool:
        """Returns whether nothing more should begin."""
        over = self.seconds() > 60 * self.minutes
        return over if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.asarray(over)))
