"""Times programs on the devices of JAX."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


def best_seconds(run: Callable[..., Any], *args: Any, seconds: float = 0.4, calls: int = 0) -> float:
    """Returns the least seconds of a call, the first one left out.

    Args:
      run: a compiled function.
      *args: of it.
      seconds: for which it is called again and again, three times at least.
      calls: how often it is called instead; processes that call it together must agree on that.
    """
    args = jax.device_put(args) if jax.process_count() == 1 else args
    jax.block_until_ready(run(*args))
    best, done, stop = float("inf"), 0, time.perf_counter() + seconds
    while done < (calls or 3) or (not calls and time.perf_counter() < stop):
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        best, done = min(best, time.perf_counter() - start), done + 1
    return best
