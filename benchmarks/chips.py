"""Lists published figures of TPU chips, and what a slice's wires carry.

Source: Google Cloud's pages docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}: peak in bfloat16, HBM capacity and
bandwidth, "bidirectional inter-chip interconnect bandwidth (per chip)" and ports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Chip:
    """Describes a TPU chip.

    Attributes:
      flops: FLOP/s of bfloat16 products with float32 sums.
      hbm_bytes: memory.
      hbm_bandwidth: bytes/s of it.
      link: bytes/s of one wire in one direction: the published figure / ports / 2.
      wraps: length from which an axis of a slice closes to a ring.
    """

    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link: float
    wraps: int


CHIPS: Mapping[str, Chip] = {
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 400e9 / 4 / 2, wraps=16),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 800e9 / 4 / 2, wraps=16),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 1200e9 / 6 / 2, wraps=4),
}


def slice_of(topology: str) -> tuple[str, tuple[int, ...]]:
    """Returns ("v5e", (4, 4)) of "v5e:4x4"."""
    name, _, shape = topology.partition(":")
    sizes = tuple(int(size) for size in shape.split("x")) if shape else ()
    if name not in CHIPS or not sizes:
        raise SystemExit(f"--topology={topology}: want one of {', '.join(CHIPS)}, then its chips, as in v5e:4x4")
    return name, sizes


def wire_bandwidth(chip: Chip, shape: Sequence[int], coords: Sequence[Sequence[int]]) -> float:
    """Returns the bytes/s that a chip at the end of a line can receive in a collective among the chips at `coords`.

    Along each axis of the slice on which the group extends there are two wires where the axis is a ring, and one
    for the chips at its ends where it is a line. Rings through all these axes at once, wires of other groups unused.
    """
    wires = 0
    for axis, size in enumerate(shape):
        if len({place[axis] for place in coords}) > 1:
            wires += 2 if size >= chip.wraps else 1
    return chip.link * max(wires, 1)
