"""Measurements of a check-up that take moments: what is tested is that they are made and told, not what they are."""

from __future__ import annotations

import pytest

from smallr.core.timing import best_seconds
from smallr.doctor import speed


def measure_little(patch: pytest.MonkeyPatch) -> None:
    """Takes small products and arrays, and three calls of each program."""
    matmul_peak, bandwidth = speed.matmul_peak, speed.bandwidth
    patch.setattr(speed, "matmul_peak", lambda dtype, size: matmul_peak(dtype, 64))
    patch.setattr(speed, "bandwidth", lambda size: bandwidth(2**20))
    patch.setitem(best_seconds.__kwdefaults__, "seconds", 0.0)
