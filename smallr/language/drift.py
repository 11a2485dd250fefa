"""Says how far what is seen now has moved from what an evaluation saw: the population stability index."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

BINS = 10
FEWEST = 50  # values before an index means anything
WINDOW = 1000  # of the last values


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Holds the shares of values between edges; the first and the last bin are open.

    Attributes:
      edges: between the bins, ascending.
      shares: one more than there are edges; they sum to 1.
    """

    edges: tuple[float, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], bins: int = BINS) -> Distribution:
        """Makes bins of about equally many values; equal values are never in two bins."""
        edges = np.unique(np.quantile(np.asarray(values, float), np.arange(1, bins) / bins))
        return cls(tuple(edges.tolist()), tuple(_shares(values, edges)))

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Distribution:
        """Takes what `dataclasses.asdict` gave, from JSON.

        Raises:
          KeyError, TypeError, ValueError: it is something else.
        """
        found = cls(tuple(map(float, fields["edges"])), tuple(map(float, fields["shares"])))
        if len(found.shares) != len(found.edges) + 1 or not all(low < high for low, high in pairwise(found.edges)):
            raise ValueError("a distribution needs edges that rise, and a share more than edges")
        if not (all(share >= 0 for share in found.shares) and math.isclose(sum(found.shares), 1, abs_tol=1e-6)):
            raise ValueError("the shares of a distribution are not of 1")
        return found

    def psi(self, values: Sequence[float]) -> float:
        """Computes sum (q - p) ln(q / p) over the bins, p as the evaluation had them and q of the values.

        Half a value is added to every bin of both, so that an empty one is no infinity. NaN for fewer than `FEWEST`.
        """
        if len(values) < FEWEST:
            return math.nan
        now = np.asarray(_shares(values, np.asarray(self.edges)))
        count, bins = len(values), len(self.shares)
        p, q = ((np.asarray(each) * count + 0.5) / (count + 0.5 * bins) for each in (self.shares, now))
        return float(np.sum((q - p) * np.log(q / p)))


def _shares(values: Sequence[float], edges: np.ndarray) -> list[float]:
    counts = np.bincount(np.searchsorted(edges, np.asarray(values, float), side="left"), minlength=len(edges) + 1)
    return (counts / len(values)).tolist()


class Drift:
    """Follows the last values of one quantity against a distribution; without one there is no index."""

    def __init__(self, reference: Distribution | None, window: int = WINDOW):
        self._reference, self._values = reference, deque(maxlen=window)

    def add(self, value: float) -> None:
        """Takes one more value; the oldest goes once the window is full."""
        self._values.append(value)

    def index(self) -> float:
        """Returns the population stability index of the window; NaN while it has too few values."""
        return self._reference.psi(list(self._values)) if self._reference else math.nan
