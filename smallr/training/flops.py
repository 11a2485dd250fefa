"""Gives the peak speed of a device, and the share of it that a run uses (model FLOPs utilisation, MFU).

The figures are the vendors' own, dense (without structured sparsity), products in 16 bits with 32-bit sums:
NVIDIA's data sheets of each product, Google Cloud's pages on TPU versions. They are for one `jax.Device`:
a chip, or one of a chip's two cores on TPU v2 and v3.
"""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
from absl import logging

# By the words of the device kind; of the entries whose words all occur, the one with most words counts.
# A product that is not listed has no figure: none is better than a wrong one.
_PEAKS: dict[frozenset[str], float] = {
    frozenset(words.split()): teraflops * 1e12
    for words, teraflops in {
        "tpu v2": 22.5,
        "tpu v3": 61.5,
        "tpu v4": 275,
        "tpu v4 lite": 138,
        "tpu v5": 459,  # v5p calls itself "TPU v5" or "TPU v5p"
        "tpu v5p": 459,
        "tpu v5 lite": 197,
        "tpu v5e": 197,
        "tpu v6 lite": 918,
        "tpu v6e": 918,
        "a100": 312,
        "h100": 989.4,
        "h100 pcie": 756.5,
        "h100 nvl": 835.5,
        "h200": 989.4,
        "h200 nvl": 835.5,
        "gh200": 989.4,
        "l4": 121,
        "l40s": 362,
        "a10": 125,
        "a10g": 70,
        "rtx 3090": 71,
        "rtx 4090": 165.2,
        "t4": 65,
        "v100": 125,
    }.items()
}
_NO_BFLOAT16 = {"t4", "v100"}  # no matrix units for it: XLA computes in float32
_OTHER_PRODUCT = {"mig", "laptop", "ti", "super", "d", "max"}  # a part or a variant of a listed product

_MEASURE_SECONDS = 0.2


def peak_flops(dtype: str, device: jax.Device | None = None) -> float | None:
    """Returns the peak FLOP/s of one device for products in `dtype`, or None (and a note in the log) where it is not known.

    On a CPU it is measured: the best of matrix products over about 0.2 s, with all cores, shared out among
    the simulated devices. Elsewhere only bfloat16 and float16 have a figure: what a float32 product costs
    depends on the precision that XLA is asked for.

    Args:
      dtype: of the operands: "bfloat16", "float16" or "float32".
      device: the first device of this process if left out.
    """
    device = device or jax.local_devices()[0]
    if device.platform == "cpu":
        return _measured(dtype) / jax.local_device_count("cpu")
    peak = _from_data_sheet(device.device_kind, dtype)
    if peak is None:
        logging.warning("no peak FLOP/s is known for %s in %s, so MFU is not reported", device.device_kind, dtype)
    return peak


def mfu(flops: float, seconds: float, devices: int, peak: float | None) -> float | None:
    """Returns the share of the peak: `flops` in `seconds` on `devices` of `peak` FLOP/s each; None when the peak is not known."""
    return None if peak is None else flops / (seconds * devices * peak)


def _from_data_sheet(kind: str, dtype: str) -> float | None:
    if dtype not in ("bfloat16", "float16"):
        return None
    words = set(kind.lower().replace("-", " ").split())
    if words & _OTHER_PRODUCT or (dtype == "bfloat16" and words & _NO_BFLOAT16):
        return None
    matches = [entry for entry in _PEAKS if entry <= words]
    return _PEAKS[max(matches, key=len)] if matches else None


@functools.cache
def _measured(dtype: str, size: int = 1024) -> float:
    """Measures FLOP/s of square matrix products on the CPU, float32 sums."""
    device = jax.local_devices(backend="cpu")[0]
    a = jax.device_put(jnp.full((size, size), 0.5, dtype), device)
    product = jax.jit(lambda x, y: jnp.matmul(x, y, preferred_element_type=jnp.float32))
    product(a, a).block_until_ready()
    best, stop = float("inf"), time.perf_counter() + _MEASURE_SECONDS
    while time.perf_counter() < stop:
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
