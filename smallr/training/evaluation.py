"""Computes values of every example of a set."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Array, Float

from smallr.data.batch import Batch


def collect(
    function: Callable[[Batch], dict[str, Array]], batches: Iterable[Batch], examples: int
) -> dict[str, Float[np.ndarray, "examples"]]:
    """Runs `function` over batches and puts its [B, P] values in the order of the examples.

    `function` reports the index of each example as `example` (-1: no example there).

    Raises:
      RuntimeError: an example that no batch had.
    """
    seen = np.zeros(examples, bool)
    values: dict[str, np.ndarray] = {}
    for batch in batches:
        output = jax.device_get(function(batch))
        index = output.pop("example")
        real = index >= 0
        seen[index[real]] = True
        for name, value in output.items():
            values.setdefault(name, np.zeros(examples, value.dtype))[index[real]] = value[real]
    if not seen.all():
        raise RuntimeError(f"{(~seen).sum()} of {examples} examples were in no batch")
    return values
