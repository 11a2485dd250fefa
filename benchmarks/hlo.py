"""Reads from HLO text what a compiled program does: products, memory traffic, collectives, loops unrolled.

XLA's own `cost_analysis` counts the body of a loop once. Here a loop's body counts as often as the loop runs; the
number of trips is read from its condition. A loop whose trips depend on data gets `dynamic_trips`; of a conditional
each branch is taken to run as often as the others.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move no bytes themselves.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"),
        *("after-all", "iota", "partition-id", "replica-id", "async-done", "copy-done", "all-gather-done"),
        *("all-reduce-done", "collective-permute-done", "all-gather-start", "all-reduce-start"),
        *("collective-permute-start", "add-dependency", "opt-barrier", "slice-done"),
    )
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Holds an array's type; `hbm` is False where the compiler placed it in on-chip memory."""

    dtype: str
    dims: tuple[int, ...]
    hbm: bool = True

    @property
    def bytes(self) -> float:
        """Returns the size without padding."""
        digits = re.sub(r"\D", "", self.dtype.split("e")[0])
        size = _BYTES[self.dtype] if self.dtype in _BYTES else int(digits) / 8
        return math.prod(self.dims) * size


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Is one line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    literal: str  # what stands between the parentheses

    def called(self, key: str) -> str | None:
        """Returns the computation named by an attribute such as `body` or `calls`."""
        found = re.search(rf"\b{key}=%?([\w.-]+)", self.attributes)
        return found and found.group(1)


@dataclasses.dataclass(frozen=True)
class Collective:
    """Describes a collective of the program.

    Attributes:
      kind: e.g. "all-gather".
      shape: the whole array: gathered, or before it is reduced or scattered.
      groups: chips that take part together, as indices into the mesh.
      times: how often it runs in a step.
      source: the operation of the program that it stems from (`op_name`).
    """

    kind: str
    shape: Shape
    groups: tuple[tuple[int, ...], ...]
    times: float
    source: str

    @property
    def received(self) -> float:
        """Returns bytes that a chip receives in all runs, by a ring."""
        n = max(map(len, self.groups))
        parts = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(self.kind, (n - 1) / n)
        return self.shape.bytes * parts * self.times


@dataclasses.dataclass(frozen=True)
class Program:
    """Holds what one chip does in a run of a compiled program.

    Attributes:
      flops: of products (`dot`, `convolution`), a multiply-add counted as two.
      kernel_flops: as custom kernels state them.
      hbm_bytes: read and written by the instructions; what stays in on-chip memory does not count.
      collectives: one entry an instruction.
    """

    flops: float
    kernel_flops: float
    hbm_bytes: float
    collectives: tuple[Collective, ...]


def analyse(text: str, devices: int, dynamic_trips: float = 1.0) -> Program:
    """Reads a compiled module's text.

    Args:
      text: `Compiled.as_text()`.
      devices: size of the mesh.
      dynamic_trips: trips of a loop whose condition has no constant limit.

    Raises:
      ValueError: a line that this reader does not understand, quoted.
    """
    computations, entry = parse(text)
    flops = kernel = moved = 0.0
    collectives: dict[str, Collective] = {}
    for body, instruction, times, fused in _walk(computations, entry, dynamic_trips):
        if instruction.opcode in ("dot", "convolution"):
            flops += times * product_flops(instruction, body)
        elif instruction.opcode == "custom-call":
            found = re.search(r'"flops":"?(\d+)', instruction.attributes)
            kernel += times * int(found.group(1)) if found else 0.0
        kind = instruction.opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            collective = _collective(instruction, body, kind, devices, times)
            # The parts of an asynchronous collective carry its channel: they are one, even where one part stands
            # in an inner loop that it overlaps with.
            channel = re.search(r"channel_id=(\d+)", instruction.attributes)
            key = channel.group(1) if channel else instruction.name
            if max(map(len, collective.groups)) > 1 and times <= getattr(collectives.get(key), "times", math.inf):
                collectives[key] = collective
        if not fused and instruction.opcode not in _FREE:
            moved += times * _traffic(instruction, body, computations)
    return Program(flops, kernel, moved, tuple(collectives.values()))


_Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, _Computation], str]:
    """Reads the instructions of each computation by name, and the name of the one that the program begins with.

    Raises:
      ValueError: it has none.
    """
    computations: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None or not line.startswith(" "):
            header = re.match(r"^(ENTRY )?%?([\w.-]+) .*\{$", line)
            if header:
                current = computations.setdefault(header.group(2), {})
                entry = header.group(2) if header.group(1) else entry
            continue
        found = _INSTRUCTION.match(line)
        if found:
            instruction = _instruction(re.sub(r"/\*.*?\*/", "", line[found.end() :]), found)
            current[instruction.name] = instruction
    if not entry:
        raise ValueError("the text has no ENTRY computation: is it that of a compiled program?")
    return computations, entry


def _instruction(rest: str, found: re.Match) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    shapes = tuple(
        Shape(dtype, tuple(int(size) for size in dims.split(",") if size), not re.search(r"S\([1-9]", layout or ""))
        for dtype, dims, layout in _SHAPE.findall(kind)
    )
    start = rest.index("(")
    end = _closing(rest, start)
    inner = rest[start + 1 : end]
    operands = tuple(re.findall(r"%([\w.-]+)", inner))
    return Instruction(
        found.group(2), rest[:start], shapes, operands, rest[end + 1 :], found.group(1) is not None, inner
    )


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    raise ValueError(f"no closing parenthesis in {text[:200]!r}")


def _walk(
    computations: dict[str, _Computation], entry: str, dynamic_trips: float
) -> Iterator[tuple[_Computation, Instruction, float, bool]]:
    """Yields every instruction with its computation, how often it runs, and whether it is inside a fusion."""
    waiting = [(entry, 1.0, False)]
    while waiting:
        name, times, fused = waiting.pop()
        body = computations[name]
        for instruction in body.values():
            yield body, instruction, times, fused
            if instruction.opcode == "while":
                trips = _trips(instruction, body, computations)
                waiting.append((instruction.called("body"), times * (dynamic_trips if trips is None else trips), fused))
            elif instruction.opcode == "fusion":
                waiting.append((instruction.called("calls"), times, True))
            elif instruction.opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
                names = re.findall(r"%([\w.-]+)", branches.group(1)) if branches else []
                names += [n for n in map(instruction.called, ("true_computation", "false_computation")) if n]
                waiting += [(branch, times / len(names), fused) for branch in names]
            elif instruction.opcode in ("call", "async-start"):
                target = instruction.called("calls") or instruction.called("to_apply")
                waiting.append((target, times, fused))


def _trips(loop: Instruction, body: _Computation, computations: dict[str, _Computation]) -> int | None:
    """Returns how often a loop runs, or None where that depends on data."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known.group(1))
    condition = computations[loop.called("condition")]
    compare = next(instruction for instruction in condition.values() if instruction.is_root)
    if compare.opcode == "fusion":  # operands of the fusion stand for the parameters of what it calls
        outer, inner = compare, computations[compare.called("calls")]
        compare = next(instruction for instruction in inner.values() if instruction.is_root)
        operands = [_of_parameter(inner[name], outer, condition) or inner[name] for name in compare.operands]
    else:
        operands = [condition[name] for name in compare.operands]
    counters = [o for o in operands if o.opcode == "get-tuple-element"]
    limits = [o for o in operands if o.opcode == "constant"]
    if compare.opcode != "compare" or len(counters) != 1 or len(limits) != 1:
        return None
    index = int(re.search(r"index=(\d+)", counters[0].attributes).group(1))
    start, step = _initial(body[loop.operands[0]], index, body), _step(computations[loop.called("body")], index)
    return max(-(-(int(limits[0].literal) - start) // step), 0)


def _of_parameter(instruction: Instruction, outer: Instruction, body: _Computation) -> Instruction | None:
    return body[outer.operands[int(instruction.literal)]] if instruction.opcode == "parameter" else None


def _initial(state: Instruction, index: int, body: _Computation) -> int:
    value = body.get(state.operands[index]) if state.opcode == "tuple" else None
    while value is not None and value.opcode in ("copy", "bitcast"):
        value = body.get(value.operands[0])
    return int(value.literal) if value is not None and value.opcode == "constant" else 0


def _step(body: _Computation, index: int) -> int:
    root = next(instruction for instruction in body.values() if instruction.is_root)
    value = body.get(root.operands[index]) if root.opcode == "tuple" else None
    total = 0
    while value is not None and value.opcode in ("add", "copy"):
        constants = [body[name] for name in value.operands if body[name].opcode == "constant"]
        total += int(constants[0].literal) if constants else 0
        others = [body[name] for name in value.operands if body[name].opcode != "constant"]
        value = others[0] if others else None
    return total or 1


def product_flops(instruction: Instruction, body: _Computation) -> float:
    """Returns the FLOPs of a `dot` or `convolution` of a computation, a multiply-add counted as two."""
    left, right = (body[name].shapes[0].dims for name in instruction.operands[:2])
    out = math.prod(instruction.shapes[0].dims)
    if instruction.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [int(place) for place in found.group(1).split(",") if place] if found else []
        return 2.0 * out * math.prod(left[place] for place in contracted)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    lhs, rhs, result = labels.groups()
    fields = dict(re.findall(r"(\w+)=([-\w]+)", (re.search(r"window=\{([^}]*)\}", instruction.attributes) or [""])[0]))
    total = 2.0 * left[lhs.index("b")] * right[rhs.index("i")] * right[rhs.index("o")]
    for place in range(len(lhs) - 2):
        size = left[lhs.index(str(place))], right[rhs.index(str(place))]
        out = instruction.shapes[0].dims[result.index(str(place))]
        total *= _valid(*size, out, functools.partial(_field, fields, place))
    return total


def _field(fields: dict[str, str], place: int, name: str, default: str) -> str:
    return fields[name].split("x")[place] if name in fields else default


def _valid(size: int, window: int, out: int, field: Callable[[str, str], str]) -> int:
    """Counts pairs of output and window positions along one axis of a convolution that meet an element of its input."""
    stride, dilate, spread = (int(field(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
    low = int(field("pad", "0_0").split("_")[0])
    at = np.arange(out)[:, None] * stride + np.arange(window)[None] * spread - low
    return int(np.sum((at >= 0) & (at % dilate == 0) & (at // dilate < size)))


def _collective(instruction: Instruction, body: _Computation, kind: str, devices: int, times: float) -> Collective:
    operands = [body[name].shapes for name in instruction.operands if name in body]
    inputs = [shape for shapes in operands for shape in shapes]
    groups = (
        _cycles(instruction.attributes)
        if kind == "collective-permute"
        else replica_groups(instruction.attributes, devices)
    )
    whole = max(inputs, key=lambda shape: shape.bytes)
    total = sum(shape.bytes for shape in inputs)
    if kind == "all-gather":
        whole = max(instruction.shapes, key=lambda shape: shape.bytes)
        total *= max(map(len, groups))
    # Several arrays in one collective: the largest with the size of all.
    if whole.bytes and round(total / whole.bytes) > 1:
        whole = dataclasses.replace(whole, dims=(round(total / whole.bytes), *whole.dims))
    root = next(other for other in body.values() if other.is_root)
    if kind == "all-reduce" and root.opcode == "dynamic-slice":
        kind = "reduce-scatter"  # how TPU programs write one
    source = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return Collective(kind, whole, groups, times, source.group(1) if source else "")


def replica_groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Returns the groups of a collective in any of the ways in which HLO writes them.

    Raises:
      ValueError: in yet another way.
    """
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", attributes)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh.group(1))}
        if ":" in mesh.group(3) or math.prod(sizes.values()) != devices:
            raise ValueError(f"part of an axis is not understood: {mesh.group(0)}")
        names = re.findall(r"'(\w+)'", mesh.group(3))
        ids = _iota(mesh.group(2), devices).reshape(tuple(sizes.values()))
        places = [list(sizes).index(name) for name in names]
        return _rows(np.moveaxis(ids, places, range(-len(places), 0)), math.prod(sizes[name] for name in names))
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
    if listed:
        groups = [tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed.group(1))]
        return tuple(groups) or (tuple(range(devices)),)
    shaped = re.search(r"replica_groups=\[([\d,]*)\]<=(\[[\d,]*\](?:T\([\d,]*\))?)", attributes)
    if not shaped:
        raise ValueError(f"no replica_groups in {attributes[:200]!r}")
    return _rows(_iota(shaped.group(2), devices), int(shaped.group(1).split(",")[-1]))


def _iota(written: str | None, devices: int) -> np.ndarray:
    """Returns the device ids written as "[4,2]T(1,0)": a count of that shape, transposed; all in order if None."""
    if not written:
        return np.arange(devices)
    shape, order = re.match(r"\[([\d,]*)\](?:T\(([\d,]*)\))?", written).groups()
    ids = np.arange(devices).reshape([int(size) for size in shape.split(",")])
    return ids.transpose([int(place) for place in order.split(",")]) if order else ids


def _rows(ids: np.ndarray, size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(i) for i in row) for row in ids.reshape(-1, size))


def _cycles(attributes: str) -> tuple[tuple[int, ...], ...]:
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes).group(1)
    following = {int(a): int(b) for a, b in re.findall(r"\{(\d+),(\d+)\}", pairs)}
    groups = []
    while following:
        chain = [next(iter(following))]
        while chain[-1] in following:
            chain.append(following.pop(chain[-1]))
        groups.append(tuple(dict.fromkeys(chain)))
    return tuple(groups)


def _traffic(instruction: Instruction, body: _Computation, computations: dict[str, _Computation]) -> float:
    """Counts bytes of HBM that an instruction reads and writes; of what it slices or updates in place, the slice only."""
    written = _sum(instruction.shapes)
    operands = [body[name].shapes if name in body else () for name in instruction.operands]
    if instruction.opcode in ("dynamic-slice", "gather", "slice"):
        return written + _sum(instruction.shapes, anywhere=True)
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _sum(operands[1])
    if instruction.opcode in ("copy-start", "slice-start"):  # the result names both ends, and slices the whole source
        return min(end.bytes for end in instruction.shapes[:2]) * sum(end.hbm for end in instruction.shapes[:2])
    if instruction.opcode != "fusion":
        return written + sum(map(_sum, operands))
    inner = computations[instruction.called("calls")]
    read = 0.0
    for place, shapes in enumerate(operands):
        parameter = next(i for i in inner.values() if i.opcode == "parameter" and int(i.literal) == place)
        read += min(_sum(shapes), _used(parameter, inner) if any(s.hbm for s in shapes) else 0.0)
    root = next(i for i in inner.values() if i.is_root)
    if root.opcode == "dynamic-update-slice":
        written = min(written, _sum(inner[root.operands[1]].shapes, anywhere=True))
    return read + written


def _used(parameter: Instruction, inner: _Computation) -> float:
    users = [i for i in inner.values() if parameter.name in i.operands]
    total = 0.0
    for user in users:
        if user.opcode in ("dynamic-slice", "gather", "slice") and user.operands[0] == parameter.name:
            total += _sum(user.shapes, anywhere=True)
        elif user.opcode == "bitcast":
            total += _used(user, inner)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != parameter.name:
            return _sum(parameter.shapes, anywhere=True)
    return total


def _sum(shapes: Sequence[Shape], anywhere: bool = False) -> float:
    return sum(shape.bytes for shape in shapes if shape.hbm or anywhere)
