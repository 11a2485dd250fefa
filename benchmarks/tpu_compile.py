"""Compiles the training step for TPU slices without a TPU, and says what bounds it.

    python -m benchmarks.tpu_compile --topology=v5e:4x4 --config=configs/cogpo.py --model=qwen2.5-0.5b

Needs the extra `tpu` (libtpu is the compiler) and no TPU; weights are shapes only. It prints the memory of a chip
against its HBM, FLOPs as compiled and as needed, bytes of each kind of collective, and the roofline: the longest of
compute, HBM and wires bounds a step from below, and so MFU (needed FLOPs / peak) from above. `--topology=cpu:8`
compiles for simulated devices, which have no roofline. `--table` and `--sharding` print the tables of docs/scale.md.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from benchmarks.abstract_step import SHAPES, AbstractStep, Pairs, abstract_step
from benchmarks.chips import CHIPS, Chip, slice_of, wire_bandwidth
from benchmarks.hlo import Program, analyse
from smallr.core.sharding import MESH_AXES
from smallr.models.config import DecoderConfig

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

# Slice, shape, mesh (data, fsdp, tensor), rows of a micro-batch a chip, micro-batches a step, remat.
TABLE = [
    (topology, model, mesh, rows, 1, remat)
    for topology, mesh, settings in (
        ("v5e:4x4", "1,16,1", ((2, "full"), (1, "full"), (1, "full"), (1, "full"))),
        ("v6e:4x4", "1,16,1", ((4, "full"), (2, "full"), (2, "full"), (1, "full"))),
        ("v5p:4x4x8", "1,128,1", ((4, "full"), (4, "full"), (4, "full"), (2, "full"))),
    )
    for model, (rows, remat) in zip(list(SHAPES)[:4], settings, strict=True)
]


@dataclasses.dataclass(frozen=True)
class Bound:
    """Holds the seconds that a step takes at least on each resource of a chip."""

    compute: float
    hbm: float
    wires: float

    @property
    def longest(self) -> float:
        """Returns the time of a step in which all three overlap perfectly."""
        return max(self.compute, self.hbm, self.wires)


def roofline(program: Program, chip: Chip, shape: tuple[int, ...], coords: list[tuple[int, ...]]) -> Bound:
    """Returns the bounds of a program whose device i sits at `coords[i]` of a slice of this shape."""
    wires = 0.0
    for collective in program.collectives:
        rates = [wire_bandwidth(chip, shape, [coords[i] for i in group]) for group in collective.groups]
        wires += collective.received / min(rates)
    flops = program.flops + program.kernel_flops
    return Bound(flops / chip.flops, program.hbm_bytes / chip.hbm_bandwidth, wires)


def make_devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a TPU slice that is not there, or simulated ones.

    Raises:
      SystemExit: libtpu is not installed, or does not know the slice.
    """
    if topology.startswith("cpu:"):
        return jax.devices("cpu")
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:
        raise SystemExit(f"--topology={topology}: {error}\nlibtpu comes with pip install 'jax[tpu]'") from error


def mesh_of(devices: list[jax.Device], sizes: str) -> Mesh:
    """Returns the mesh of `data,fsdp,tensor` or `data,fsdp,tensor,context`; one of them may be -1."""
    shape = [int(size) for size in sizes.split(",")]
    shape += [1] * (len(shape) == 3)
    if -1 in shape:
        shape[shape.index(-1)] = -len(devices) // int(np.prod(shape))
    if len(shape) != 4 or int(np.prod(shape)) != len(devices):
        raise SystemExit(f"--mesh={sizes}: want data,fsdp,tensor,context whose product is {len(devices)} devices")
    return jax.make_mesh(tuple(shape), MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)


def read_config(path: str) -> ConfigDict:
    """Returns `get_config()` of FILE or FILE:ARGUMENT."""
    file, _, argument = path.partition(":")
    spec = importlib.util.spec_from_file_location("config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument or None)


def measure(step: AbstractStep, topology: str, text_file: str = "") -> dict[str, object]:
    """Compiles and counts; times and bytes are those of one chip."""
    start = time.perf_counter()
    compiled = step.compile()
    seconds = time.perf_counter() - start
    text = compiled.as_text()
    if text_file:
        Path(text_file).write_text(text)
    chips = step.mesh.size
    program = analyse(text, chips, step.dynamic_trips())
    # A kernel states the products of all tiles below the diagonal; it skips those that hold nothing visible.
    program = dataclasses.replace(program, kernel_flops=program.kernel_flops * step.visible_share())
    memory = compiled.memory_analysis()
    needed = step.useful_flops() / chips
    by_kind = collections.Counter()
    for collective in program.collectives:
        by_kind[collective.kind] += collective.received
    result = {
        "compile_seconds": seconds,
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
        "needed_flops": needed,
        "flops": program.flops + program.kernel_flops,
        "kernel_flops": program.kernel_flops,
        "xla_flops": compiled.cost_analysis().get("flops", 0.0),
        "hbm_bytes": program.hbm_bytes,
        "collectives": {kind: by_kind[kind] for kind in KINDS if by_kind[kind]},
        "tokens": step.pairs.rows * step.pairs.row_length / chips,
    }
    if not topology.startswith("cpu:"):
        name, shape = slice_of(topology)
        coords = [tuple(device.coords) for device in step.mesh.devices.flat]
        bound = roofline(program, CHIPS[name], shape, coords)
        result |= {
            "hbm": CHIPS[name].hbm_bytes,
            "bound": dataclasses.asdict(bound),
            "mfu": needed / CHIPS[name].flops / bound.longest,
            "mfu_no_overlap": needed / CHIPS[name].flops / (max(bound.compute, bound.hbm) + bound.wires),
        }
    return result


def report(result: dict) -> str:
    """Returns the result in words."""
    memory = {name: result[name] for name in ("arguments", "outputs", "temporaries", "program")}
    total = sum(memory.values())
    lines = ["memory   " + ", ".join(f"{name} {size / 2**30:.2f}" for name, size in memory.items())]
    lines[0] += f": {total / 2**30:.2f} GiB" + (f" of {result['hbm'] / 2**30:.0f}" if "hbm" in result else "")
    lines += [
        f"FLOPs    {result['flops'] / 1e12:.2f} T computed, {result['needed_flops'] / 1e12:.2f} T needed: "
        f"{result['flops'] / result['needed_flops']:.2f} x (XLA, loops counted once: {result['xla_flops'] / 1e12:.2f} T)",
        "wires    " + (", ".join(f"{k} {b / 1e6:.1f} MB" for k, b in result["collectives"].items()) or "nothing"),
        f"HBM      {result['hbm_bytes'] / 1e9:.1f} GB",
        f"compiled in {result['compile_seconds']:.0f} s",
    ]
    if "bound" in result:
        bound = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in result["bound"].items())
        lines.append(
            f"bound    {bound} ms: MFU at most {result['mfu']:.0%}, {result['mfu_no_overlap']:.0%} if wires wait"
        )
    return "\n".join(lines)


def table() -> None:
    """Prints a row for each entry of TABLE, each compiled in a process of its own."""
    print(
        "| slice | model | mesh | rows x micro | GiB | FLOPs needed | computed | GB gather + scatter, rest | ms | MFU <= |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for topology, model, mesh, rows, micro, remat in TABLE:
        chips = int(np.prod(slice_of(topology)[1]))
        command = [sys.executable, "-m", "benchmarks.tpu_compile", f"--topology={topology}", f"--model={model}"]
        command += [f"--mesh={mesh}", f"--rows={rows * micro * chips}", f"--accumulation={micro}", f"--remat={remat}"]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True)
        if done.returncode:
            print(
                f"| {topology} | {model} | {mesh} | {rows} x {micro} | {done.stderr.strip().splitlines()[-1][:200]} |"
            )
            continue
        r = json.loads(done.stdout.splitlines()[-1])
        size = sum(r[name] for name in ("arguments", "outputs", "temporaries", "program"))
        kinds = r["collectives"]
        main = sum(kinds.get(kind, 0) for kind in ("all-gather", "reduce-scatter", "collective-permute"))
        times = " / ".join(f"{value * 1e3:.0f}" for value in r["bound"].values())
        print(
            f"| {topology} | {model} | {mesh} | {rows} x {micro} | {size / 2**30:.1f} of {r['hbm'] / 2**30:.0f} | "
            f"{r['needed_flops'] / 1e12:.1f} T | {r['flops'] / r['needed_flops']:.2f} x | {main / 1e9:.2f}, "
            f"{(sum(kinds.values()) - main) / 1e9:.2f} | {times} | {r['mfu']:.0%} ({r['mfu_no_overlap']:.0%}) |",
            flush=True,
        )


def sharding_table(model: DecoderConfig, config: ConfigDict, pairs: Pairs) -> None:
    """Prints what a simulated device receives in a step of the same batch, split over 1 to 8 of them along one axis."""
    devices = jax.devices("cpu")
    print("| axis | devices | " + " | ".join(KINDS) + " | MB in all | GiB of arguments | of temporaries |")
    print("|---" * (5 + len(KINDS)) + "|")
    for axis in MESH_AXES:
        for count in (2, 4, 8):
            sizes = ",".join(str(count if name == axis else 1) for name in MESH_AXES)
            r = measure(abstract_step(model, config, mesh_of(devices[:count], sizes), pairs), f"cpu:{count}")
            megabytes = [r["collectives"].get(kind, 0) / 1e6 for kind in KINDS]
            cells = [*(f"{size:,.1f}" for size in (*megabytes, sum(megabytes)))]
            cells += [f"{r[name] / 2**30:.2f}" for name in ("arguments", "temporaries")]
            print(f"| {axis} | {count} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Compiles one step, or those of a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4", help="a TPU slice, or cpu:N")
    parser.add_argument("--config", default="configs/cogpo.py", help="objective, optimizer, compute and mesh")
    parser.add_argument("--model", default="qwen2.5-0.5b", choices=SHAPES)
    parser.add_argument("--mesh", help="data,fsdp,tensor or data,fsdp,tensor,context; default: the config's")
    parser.add_argument("--rows", type=int, default=0, help="rows of a step; default: one a device")
    parser.add_argument("--row_length", type=int, default=4096)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a pair's prompt")
    parser.add_argument("--completion", type=int, default=256, help="tokens of each of its completions")
    parser.add_argument("--optimizer", help="adamw, adafactor, muon, adamw8bit; default: the config's")
    parser.add_argument("--shard_over_data", action="store_true", help="split the optimizer's state over data too")
    parser.add_argument("--accumulation", type=int, help="micro-batches; default: the config's")
    parser.add_argument("--remat", help="default: the config's")
    parser.add_argument("--attention", help="default: the config's")
    parser.add_argument("--text", default="", help="a file for the compiled program's text")
    parser.add_argument("--json", action="store_true", help="one line of JSON in place of words")
    parser.add_argument("--table", action="store_true", help="models and slices of docs/scale.md")
    parser.add_argument("--sharding", action="store_true", help="the step on 2 to 8 simulated devices, by each axis")
    args = parser.parse_args()
    if args.table:
        table()
        return
    if args.sharding:
        args.topology, args.rows = "cpu:8", args.rows or 8
    if args.topology.startswith("cpu:"):
        jax.config.update("jax_num_cpu_devices", int(args.topology[4:]))
    config = read_config(args.config).unlock()
    config.batch.accumulation = args.accumulation or config.batch.accumulation
    config.optimizer.name = args.optimizer or config.optimizer.name
    config.optimizer.shard_over_data = args.shard_over_data or config.optimizer.shard_over_data
    compute = config.compute
    devices = make_devices(args.topology)
    model = dataclasses.replace(
        SHAPES[args.model],
        dtype=compute.dtype,
        remat=args.remat or compute.remat,
        attention=args.attention or compute.attention,
    )
    pairs = Pairs(args.rows or len(devices), args.row_length, args.prompt, args.completion)
    if args.sharding:
        sharding_table(model, config, pairs)
        return
    mesh = mesh_of(devices, args.mesh or ",".join(str(config.mesh[axis]) for axis in MESH_AXES))
    result = measure(abstract_step(model, config, mesh, pairs), args.topology, args.text)
    print(json.dumps(result) if args.json else report(result))


if __name__ == "__main__":
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU whose metadata could be asked for
    jax.config.update("jax_platforms", "cpu")
    main()
