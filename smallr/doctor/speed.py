"""Measures what bounds every program: products, memory, and what devices send to each other."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from smallr.core.timing import best_seconds
from smallr.doctor.findings import Findings
from smallr.models.linear import precision
from smallr.training.flops import peak_flops

GB = 1e9


def matmul_peak(dtype: str, size: int) -> float:
    """Returns FLOP/s of square products on one device, with float32 sums and in the precision that smallr asks for.

    Several products in a row are one program, so that no call of it counts.
    """
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    count = 4

    def products(a: jax.Array) -> jax.Array:
        def one(x: jax.Array, _: None) -> tuple[jax.Array, None]:
            product = jnp.matmul(x, a, precision=precision(a.dtype), preferred_element_type=jnp.float32)
            return (product / size**0.5).astype(a.dtype), None

        return lax.scan(one, a, None, length=count)[0]

    return 2 * size**3 * count / best_seconds(jax.jit(products), a)


def bandwidth(size: int) -> float:
    """Returns the bytes/s at which one device reads an array of `size` bytes and sums it."""
    x = jnp.ones(size // 4, jnp.float32)
    return x.nbytes / best_seconds(jax.jit(jnp.sum), x)


def measure_device(findings: Findings, quick: bool) -> dict[str, float]:
    """Adds the peaks of one device; returns FLOP/s by dtype."""
    cpu = jax.default_backend() == "cpu"
    size = (1024 if quick else 2048) if cpu else 8192
    peaks = {dtype: matmul_peak(dtype, size) for dtype in ("float32", "bfloat16")}
    for dtype, peak in peaks.items():
        known = None if cpu else peak_flops(dtype)
        sheet = f", {peak / known:.0%} of the data sheet's {known / 1e12:.0f}" if known else ""
        findings.add(
            "speed",
            f"matmul {dtype}",
            f"{peak / 1e12:.3g} TFLOP/s, products of {size} x {size} in a row{sheet}",
            flops=peak,
        )
    reached = bandwidth(2**28 if cpu else 2**32)
    findings.add("speed", "memory", f"{reached / GB:,.1f} GB/s, the sum of a large array", bytes_per_second=reached)
    return peaks


def measure_collectives(findings: Findings, mesh: Mesh, quick: bool) -> None:
    """Adds the bandwidth of collectives over each axis of the mesh; a line says so where there is one device."""
    if mesh.size == 1:
        findings.add("speed", "collectives", "one device, so there are none")
        return
    size = 2**22 if quick or jax.default_backend() == "cpu" else 2**27  # bytes that a device holds
    for axis, count in mesh.shape.items():
        if count == 1:
            continue
        for name, traffic in (("all_gather", count - 1), ("all_reduce", 2 * (count - 1) / count)):
            seconds = best_seconds(*_collective(name, axis, mesh, size), calls=5)
            rate = size * traffic / seconds
            findings.add(
                "speed",
                f"{name} over {axis}",
                f"{rate / GB:,.2f} GB/s a device, {size / 2**20:.0f} MiB on each of {count}",
                bytes_per_second=rate,
            )


def _collective(name: str, axis: str, mesh: Mesh, size: int) -> tuple[Callable, jax.Array]:
    """Returns a program of one collective, and its argument: `size` bytes on every device."""
    spec = PartitionSpec(mesh.axis_names)
    operation = {
        "all_gather": functools.partial(lax.all_gather, axis_name=axis, tiled=True),
        "all_reduce": functools.partial(lax.psum, axis_name=axis),
    }[name]

    def run(x: jax.Array) -> jax.Array:
        return operation(x)[: len(x)]

    program = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    sharding = NamedSharding(mesh, spec)
    make = jax.jit(lambda: jnp.ones(size // 4 * mesh.size, jnp.float32), out_shardings=sharding)
    return program, make()
