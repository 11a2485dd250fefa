"""Computes how far people agree, and what an audit sample says of the rows that nobody has looked at."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from smallr.evals.statistics import Estimate


def share(count: int, total: int) -> Estimate:
    """Returns a share of independent rows; its `interval` is Wilson's."""
    return Estimate(count / total if total else math.nan, math.nan, total)


@dataclass(frozen=True)
class Kappa:
    """Holds Cohen's kappa of two raters.

    Attributes:
      value: NaN where both gave one and the same verdict on every row, so that chance alone explains all.
      error: its standard error for large samples (Fleiss, Cohen and Everitt 1969).
      agreement: share of rows on which they agree.
      rows: that both have rated.
    """

    value: float
    error: float
    agreement: float
    rows: int

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Returns the normal interval, within [-1, 1]."""
        width = float(special.ndtri(0.5 + confidence / 2)) * self.error
        return max(self.value - width, -1.0), min(self.value + width, 1.0)


def cohens_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> Kappa:
    """Computes (p_o - p_e) / (1 - p_e): agreement beyond what the raters' own frequencies give by chance.

    Raises:
      ValueError: verdicts of different numbers of rows.
    """
    names = {name: index for index, name in enumerate(dict.fromkeys((*first, *second)))}
    table = np.zeros((len(names), len(names)))
    for a, b in zip(first, second, strict=True):
        table[names[a], names[b]] += 1
    count = int(table.sum())
    if not count:
        return Kappa(math.nan, math.nan, math.nan, 0)
    p = table / count
    rows, columns = p.sum(1), p.sum(0)
    observed, chance = float(np.trace(p)), float(rows @ columns)
    if chance == 1:
        return Kappa(math.nan, math.nan, observed, count)
    kappa = (observed - chance) / (1 - chance)
    diagonal = np.diag(p) @ (1 - (rows + columns) * (1 - kappa)) ** 2
    others = p * (columns[:, None] + rows[None, :]) ** 2
    off = (1 - kappa) ** 2 * (others.sum() - np.trace(others))
    spread = diagonal + off - (kappa - chance * (1 - kappa)) ** 2
    return Kappa(kappa, math.sqrt(max(spread, 0.0) / count) / (1 - chance), observed, count)


def population_errors(wrong: int, checked: int, total: int, confidence: float = 0.95) -> tuple[int, int]:
    """Returns bounds on how many of all rows are wrong, of a simple random sample without replacement.

    They are exact: the smallest and largest number under which a sample is not too unlikely (hypergeometric tails of half
    of what confidence leaves).
    """
    tail = (1 - confidence) / 2
    lowest, highest = wrong, total - (checked - wrong)
    low = _first(lowest, highest, lambda number: stats.hypergeom.sf(wrong - 1, total, number, checked) > tail)
    high = _first(low, highest + 1, lambda number: stats.hypergeom.cdf(wrong, total, number, checked) <= tail) - 1
    return low, max(high, low)


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Returns the first number for which a condition holds that, once true, stays true; `high` if there is none below."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


@dataclass(frozen=True)
class Rest:
    """Estimates how many rows are wrong among those that nobody has decided on.

    Attributes:
      rows: of the rest.
      wrong: expected among them.
      low, high: 95 % interval of that number.
      checked: rows of the audit sample; `found`: wrong ones among them.
    """

    rows: int
    wrong: float
    low: int
    high: int
    checked: int
    found: int


def errors_of_rest(found: int, checked: int, known: int, decided: int, total: int) -> Rest:
    """Estimates the errors of the rows without a decision.

    The sample speaks for all rows. Those that are known to be wrong, in the sample or outside of it, are taken off.

    Args:
      found: wrong rows of the audit sample.
      checked: rows of it.
      known: wrong ones of all rows with a decision.
      decided: rows with a decision.
      total: all rows.
    """
    rest = total - decided
    low, high = population_errors(found, checked, total)

    def within(number: float) -> float:
        return min(max(number - known, 0), rest)

    return Rest(rest, within(found / checked * total), int(within(low)), int(within(high)), checked, found)


def rows_needed(found: int, checked: int, total: int, width: float, confidence: float = 0.95) -> int:
    """Returns how many more rows of the sample to check so that the interval of the error rate is about ± width.

    The rate is that of Wilson's centre, which is not 0 where nothing wrong was found; few rows are left where the sample
    nears the whole (finite population).
    """
    z = float(special.ndtri(0.5 + confidence / 2))
    rate = (found + z * z / 2) / (checked + z * z)
    endless = z * z * rate * (1 - rate) / width**2
    return max(math.ceil(endless / (1 + (endless - 1) / total)) - checked, 0)
