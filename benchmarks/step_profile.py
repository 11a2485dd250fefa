"""Says where the seconds of a compiled training step go on a CPU, by kinds of work.

XLA's CPU backend tells the profiler when each instruction of the program begins and ends. Where several run at once, a
moment is shared out among them, so that all kinds add up to the seconds of the step.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.hlo import Instruction, parse, product_flops

CONTAINERS = frozenset(("while", "conditional", "call"))  # their instructions are told of one by one


class Event(NamedTuple):
    """Holds nanoseconds at which an instruction begins and ends."""

    start: float
    end: float
    name: str


class Kind(NamedTuple):
    """Holds what all instructions of a kind took."""

    name: str
    seconds: float
    flops: float


def print_profile(program: Any, tokens: int, run: Callable[[], Any]) -> None:
    """Runs a compiled step on `tokens` tokens under the profiler and prints its kinds of work as a table."""
    text = program.as_text()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        events = read_events(next(Path(folder).rglob("*.xplane.pb")))
    kinds = kinds_of(text, tokens, events)
    whole = sum(kind.seconds for kind in kinds)
    print("| kind | ms | share | GFLOP/s |\n|---|---|---|---|")
    for kind in kinds:
        rate = f"{kind.flops / kind.seconds / 1e9:.0f}" if kind.flops else ""
        print(f"| {kind.name} | {kind.seconds * 1e3:.0f} | {kind.seconds / whole:.1%} | {rate} |")


def read_events(file: Path) -> list[Event]:
    """Reads the instructions' events. What an instruction leaves to other threads ends with an event of its own."""
    started, ended = [], defaultdict(list)
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for event in (event for line in plane.lines for event in line.events):
            if event.name.startswith("end: "):
                ended[event.name[5:]].append(event.start_ns)
            elif any(key == "hlo_op" for key, _ in event.stats):
                started.append(Event(event.start_ns, event.start_ns + event.duration_ns, event.name))
    return paired(started, ended)


def paired(started: Iterable[Event], ended: Mapping[str, list[float]]) -> list[Event]:
    """Lets each event last until the next end under its name."""
    ends = {name: iter(sorted(times)) for name, times in ended.items()}
    events = []
    for event in sorted(started):
        end = next((time for time in ends.get(event.name, ()) if time >= event.start), event.end)
        events.append(event._replace(end=max(event.end, end)))
    return events


def shared_out(events: Iterable[Event]) -> Counter[str]:
    """Returns nanoseconds by name; of a moment each of the events that overlap there gets an equal part."""
    events = list(events)
    edges = sorted((time, add, i) for i, e in enumerate(events) for time, add in ((e.start, True), (e.end, False)))
    active: set[int] = set()
    spent, last = Counter(), 0.0
    for time, add, i in edges:
        for each in active:
            spent[events[each].name] += (time - last) / len(active)
        active.add(i) if add else active.discard(i)
        last = time
    return spent


def kinds_of(text: str, tokens: int, events: Iterable[Event]) -> list[Kind]:
    """Returns the kinds of work of a step, the longest first; `text` is that of the compiled program."""
    computations, _ = parse(text)
    places = {name: (body, instruction) for body in computations.values() for name, instruction in body.items()}
    events = [event for event in events if event.name in places and places[event.name][1].opcode not in CONTAINERS]
    times = Counter(event.name for event in events)
    seconds, flops = Counter(), Counter()
    for name, spent in shared_out(events).items():
        body, instruction = places[name]
        work = _flops(instruction, body, computations)
        kind = kind_of(instruction, body, work, tokens)
        seconds[kind] += spent / 1e9
        flops[kind] += work * times[name]
    return [Kind(name, spent, flops[name]) for name, spent in seconds.most_common()]


def _flops(instruction: Instruction, body: Mapping[str, Instruction], computations: Mapping[str, Any]) -> float:
    if instruction.opcode == "dot":
        return product_flops(instruction, body)
    inner = computations.get(instruction.called("calls") or "", {})
    return sum(product_flops(each, inner) for each in inner.values() if each.opcode == "dot")


def kind_of(instruction: Instruction, body: Mapping[str, Instruction], flops: float, tokens: int) -> str:
    """Names the kind of work of an instruction of a step, by where in the program it stems from."""
    source = source_of(instruction)
    if not source:  # the compiler's own: it belongs to what stands around it
        source = next((found for found in map(source_of, body.values()) if "while/body" in found), "")
    if instruction.name.startswith("wrapped_broadcast") or _copies_zeros(instruction):
        return "fills with zeros"
    backward = "transpose(" in source
    if re.search(r"/attention/|/attention$|\bcond/branch_", source):  # its branches are a step's only ones
        part = "attention"
    elif "(head)" in source:
        part = "head"
    else:
        part = "layers" if "while/body" in source else ""
    if not part:
        return "AdamW, norms of gradients, rest"
    if not flops:
        return f"{part}: other than products"
    if part != "layers":
        return f"{part}: products"
    if "rematted_computation" in source:
        return "layers: products computed again"
    if not backward:
        return "layers: products forward"
    contracted = flops / 2 / math.prod(instruction.shapes[0].dims)
    return "layers: gradients of " + ("weights" if contracted == tokens else "activations")


def source_of(instruction: Instruction) -> str:
    """Returns the operation of the traced program that an instruction stems from, empty if the compiler names none."""
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return found.group(1) if found else ""


def _copies_zeros(instruction: Instruction) -> bool:
    return instruction.opcode == "copy" and instruction.operands[0].startswith("wrapped_broadcast")
