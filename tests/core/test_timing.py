"""The least seconds of a call."""

from __future__ import annotations

import numpy as np

from smallr.core.timing import best_seconds


def test_a_program_is_called_until_the_time_is_over_or_so_often():
    calls = []
    run = lambda x: calls.append(1) or x  # noqa: E731
    assert 0 <= best_seconds(run, np.zeros(1), seconds=0.0) < 1
    assert len(calls) == 1 + 3
    best_seconds(run, np.zeros(1), calls=2)
    assert len(calls) == 4 + 1 + 2
