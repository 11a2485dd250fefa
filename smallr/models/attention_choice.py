"""Finds the fastest attention on the device at hand, among those that agree with the dense rule there.

Each candidate is checked first, values and gradients on a small random packing, then called twice for the same bits and
timed, forward and backward, on the run's own shapes. What disagrees, raises or is declared unsupported is left out
with a note, and never ends a run. The answer is kept on disk. On a CPU there is one candidate, and no time is spent.

Dimension letters: B rows, T tokens, H heads, K kv heads, D head_dim.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int

from smallr import __version__
from smallr.core.cache import Cache
from smallr.core.timing import best_seconds
from smallr.models.attention import attention
from smallr.models.attention_dense import dense_attention
from smallr.models.attention_support import CANDIDATES, AttentionShape, DeviceFacts, unsupported
from smallr.models.remat import rematerialised

KIND = "attention"  # of cache entries
# How far values and gradients may be from the dense rule in float32, relative to its norm; of a single token's, relative to
# the root mean square of all, `PER_TOKEN` times as far. An error of one per cent is refused in either dtype.
TOLERANCE = {"float32": 5e-4, "bfloat16": 8e-3}
PER_TOKEN = 8
CHECKED_LENGTH = 1024
NO_WINDOW = 2**31 - 1  # a traced window that bounds nothing
# Atomic additions in a kernel would end the promise that a resumed run has the same bits.
NOT_REPEATED = (
    "a second call gives other bits, so a run could not be repeated; XLA_FLAGS=--xla_gpu_deterministic_ops=true asks for a "
    "kernel that can, or name it in config.compute.attention"
)
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
_MESSAGE = 8192  # bytes of an answer that one process sends to the others

# Computes attention of q, k, v under (horizon, positions, window).
Candidate = Callable[..., Float[Array, "B T H D"]]


class Packing(NamedTuple):
    """Holds the rule of packed rows."""

    horizon: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """Says how a candidate did.

    Attributes:
      impl: its name.
      seconds: of a forward and backward pass of all kinds of layers; None if it was not timed.
      error: relative distance from the dense rule; None if it was not computed.
      note: why it is left out; empty if it is not.
    """

    impl: str
    seconds: float | None = None
    error: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Names the attention of a run.

    Attributes:
      impl: the implementation.
      device: kind of the device that it was chosen for.
      reason: in words.
      sequences: completions of a row at most, for implementations that unshare.
      trials: of all candidates; empty if nothing was tried.
    """

    impl: str
    device: str
    reason: str
    sequences: int = 0
    trials: tuple[Trial, ...] = ()

    def lines(self) -> list[str]:
        """Returns a line on the choice, and one on each candidate that was left out."""
        notes = [f"attention: {trial.impl} is left out: {trial.note}" for trial in self.trials if trial.note]
        return [f"attention: {self.impl}, {self.reason}", *notes]


def choose(
    shape: AttentionShape,
    device: DeviceFacts,
    packing: Packing | None = None,
    candidates: Mapping[str, Candidate] | None = None,
    seconds_of: Callable[..., float] | None = None,
) -> Choice:
    """Chooses the attention of a run; all processes get the answer of process 0.

    Call it outside of any mesh of several devices: what is timed runs on one.

    Args:
      shape: of a layer on one device.
      device: the device.
      packing: rows of the run to time on; None: random ones.
      candidates: in place of those of the platform, for tests.
      seconds_of: times a program with its arguments, likewise.
    """
    names = tuple(candidates or CANDIDATES.get(device.platform, ("xla",)))
    if len(names) == 1:
        return Choice(names[0], device.kind, f"the one candidate on {device.platform}", shape.room)
    found: list[Trial] = []
    if jax.process_index() == 0:
        identity = _identity(shape, device, names)
        found = _read(identity, names)
        kept = bool(found)
        if not kept:
            found = try_candidates(shape, device, packing, candidates, seconds_of)
            if not any(_OUT_OF_MEMORY in trial.note for trial in found):  # another program's doing, perhaps
                Cache(KIND).put_json(identity, [dataclasses.asdict(trial) for trial in found])
    if jax.process_count() > 1:
        found = _of_process_0(found)
    elif kept:
        return _decide(found, device, shape.room, "kept from an earlier measurement")
    return _decide(found, device, shape.room, "measured now")


def try_candidates(
    shape: AttentionShape,
    device: DeviceFacts,
    packing: Packing | None = None,
    candidates: Mapping[str, Candidate] | None = None,
    seconds_of: Callable[..., float] | None = None,
) -> list[Trial]:
    """Checks and times each candidate; arguments as in `choose`."""
    given = candidates or {name: candidate(name, shape) for name in CANDIDATES.get(device.platform, ("xla",))}
    packing = packing or random_packing(shape, shape.rows, shape.length)
    return [
        _try(name, attend, shape, packing, seconds_of or best_seconds)
        if candidates or not (reason := unsupported(name, shape, device))
        else Trial(name, note=reason)
        for name, attend in given.items()
    ]


def candidate(impl: str, shape: AttentionShape) -> Candidate:
    """Returns an implementation as a candidate for a shape."""
    return functools.partial(
        attention,
        softcap=shape.softcap,
        scale=shape.scale,
        impl=impl,
        sequences=shape.room,
    )


def _try(name: str, attend: Candidate, shape: AttentionShape, packing: Packing, seconds_of: Callable) -> Trial:
    try:
        error = disagreement(attend, shape)
        if not error <= TOLERANCE[shape.dtype]:
            return Trial(name, error=error, note=f"it differs from the dense rule by {error:.1e}")
        arrays, program = _random_arrays(shape, *packing.horizon.shape), _program(attend, shape)
        calls = [(program, *arrays, *packing, window) for window in _window_values(shape)]
        if not all(_repeats(*call) for call in calls):
            return Trial(name, error=error, note=NOT_REPEATED)
        return Trial(name, seconds=sum(seconds_of(*call) for call in calls), error=error)
    except Exception as error:  # whatever a kernel of others, a compiler or a driver raises is a note
        text = " ".join(str(error).split())[:200]
        return Trial(name, note=f"{type(error).__name__}: {text}")


def _decide(trials: list[Trial], device: DeviceFacts, sequences: int, when: str) -> Choice:
    """Takes the fastest candidate that agrees; `xla` if there is none."""
    ranked = sorted((trial for trial in trials if trial.seconds is not None), key=lambda trial: trial.seconds)
    if not ranked:
        reason = "since no candidate agrees with the dense rule on this device; `smallr doctor` says more"
        return Choice("xla", device.kind, reason, sequences, tuple(trials))
    best, reason = ranked[0], f"{1e3 * ranked[0].seconds:.2f} ms a layer forward and backward"
    if len(ranked) > 1:
        reason += f", {ranked[1].seconds / best.seconds:.2f} x as fast as {ranked[1].impl}"
    reason += f"; {len(ranked)} of {len(trials)} candidates agree with the dense rule on {device.kind} ({when})"
    return Choice(best.impl, device.kind, reason, sequences, tuple(trials))


# ---- What is kept, and what processes tell each other --------------------------------------------------------


def _identity(shape: AttentionShape, device: DeviceFacts, names: tuple[str, ...]) -> str:
    versions = [jax.__version__, jaxlib.__version__, __version__]
    flags = os.environ.get("XLA_FLAGS", "")  # which decide on kernels, and whether they repeat their bits
    parts = [dataclasses.asdict(shape), dataclasses.asdict(device), versions, flags, names]
    return json.dumps(parts, sort_keys=True)


def _read(identity: str, names: tuple[str, ...]) -> list[Trial]:
    kept = Cache(KIND).get_json(identity) or []
    return [Trial(**fields) for fields in kept] if {fields["impl"] for fields in kept} == set(names) else []


def _of_process_0(trials: list[Trial]) -> list[Trial]:
    """Sends the trials of process 0 to all."""
    text = json.dumps([{**dataclasses.asdict(trial), "note": trial.note[:200]} for trial in trials]).encode()
    sent = np.zeros(_MESSAGE, np.uint8)
    sent[: len(text)] = np.frombuffer(text, np.uint8)
    received = np.asarray(multihost_utils.broadcast_one_to_all(sent)).astype(np.uint8)
    return [Trial(**fields) for fields in json.loads(received.tobytes().rstrip(b"\0").decode())]


# ---- Checks and times ----------------------------------------------------------------------------------------


def random_packing(shape: AttentionShape, rows: int, length: int, seed: int = 0) -> Packing:
    """Returns rows of random examples with as many completions as the shape has; the last ones end in padding."""
    rng = np.random.default_rng(seed)
    completions = shape.completions or 2
    most = shape.room // completions
    horizon, positions = np.zeros((2, rows, length), np.int32)
    for row in range(rows):
        start = 0
        for _ in range(min(most, 1 + length // (24 * (1 + completions)))):
            sizes = rng.integers(1, max(2, length // 6), 1 + completions)
            if start + sizes.sum() > length - row:
                break
            end = start + sizes.sum()
            horizon[row, start : start + sizes[0]], positions[row, start : start + sizes[0]] = end, np.arange(sizes[0])
            start += sizes[0]
            for size in sizes[1:]:
                horizon[row, start : start + size] = start + size
                positions[row, start : start + size] = sizes[0] + np.arange(size)
                start += size
    return Packing(horizon, positions)


def disagreement(attend: Candidate, shape: AttentionShape, seed: int = 0) -> float:
    """Returns how far a candidate is from the dense rule on two random rows, the worst of values and gradients."""
    length = min(shape.length, CHECKED_LENGTH)
    rule = random_packing(shape, 2, length, seed)
    arrays = _random_arrays(shape, 2, length)
    ours, theirs = _program(attend, shape), _dense_program(shape)
    return max(
        _distance(a, b)
        for window in _window_values(shape)
        for a, b in zip(ours(*arrays, *rule, window), theirs(*arrays, *rule, window), strict=True)
    )


@functools.lru_cache(maxsize=4)
def _dense_program(shape: AttentionShape) -> Callable[..., tuple[Array, ...]]:
    """Returns the program of the dense rule, which is compiled once for all candidates."""
    dense = functools.partial(dense_attention, softcap=shape.softcap, scale=shape.scale)
    return _program(dense, dataclasses.replace(shape, remat="none"))


def _distance(a: Array, b: Array) -> float:
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    scale = max(float(np.sqrt(np.mean(b**2))), 1e-30)
    by_token = np.sqrt(np.mean((a - b) ** 2, axis=(2, 3)))
    distance = max(float(np.sqrt(np.mean(by_token**2))), float(by_token.max()) / PER_TOKEN) / scale
    return distance if np.isfinite(distance) else float("inf")


def _repeats(program: Callable[..., tuple[Array, ...]], *args: Any) -> bool:
    """Returns whether a second call gives the same bits."""
    calls = [[np.asarray(x) for x in program(*args)] for _ in range(2)]
    return all(a.tobytes() == b.tobytes() for a, b in zip(*calls, strict=True))


def _window_values(shape: AttentionShape) -> list[Int[np.ndarray, ""]]:
    return [np.int32(NO_WINDOW if window is None else window) for window in shape.windows]


def _random_arrays(shape: AttentionShape, rows: int, length: int) -> tuple[Array, ...]:
    """Returns q, k, v and the cotangent of the output."""
    keys, heads = jax.random.split(jax.random.key(0), 4), (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
    return tuple(
        jax.random.normal(key, (rows, length, count, shape.head_dim)).astype(shape.dtype)
        for key, count in zip(keys, heads, strict=True)
    )


def _program(attend: Candidate, shape: AttentionShape) -> Callable[..., tuple[Array, ...]]:
    """Returns a compiled function to the output and the gradients of q, k and v."""

    def run(q: Array, k: Array, v: Array, cotangent: Array, horizon: Array, positions: Array, window: Array) -> Any:
        window = shape.traced_windows(window)
        layer = rematerialised(lambda q, k, v: attend(q, k, v, horizon, positions, window), shape.remat, scanned=False)
        out, pull = jax.vjp(layer, q, k, v)
        return out, *pull(cotangent.astype(out.dtype))

    return jax.jit(run)
