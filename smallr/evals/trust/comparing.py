"""Says whether two models differ in how far their confidence can be relied on."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from smallr.evals.records import Record
from smallr.evals.trust import risk
from smallr.evals.trust.report import sorted_answers


@dataclasses.dataclass(frozen=True)
class FigureDifference:
    """Holds one figure of two models on the same questions; differences are B minus A.

    Attributes:
      low, high: of a bootstrap over questions, the same ones for both models.
      p_value: two-sided, of the same bootstrap: twice the smaller share of resamples on one side of zero.
    """

    name: str
    a: float
    b: float
    low: float
    high: float
    p_value: float

    @property
    def differs(self) -> bool:
        """Returns whether the interval leaves out zero; one that is not known leaves out nothing."""
        return self.low > 0 or self.high < 0


def differences(
    a: Sequence[Record],
    b: Sequence[Record],
    field: str,
    shared: Collection[str],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[FigureDifference]:
    """Compares all figures by a paired bootstrap; empty where one of the two has no confidences.

    Args:
      a: samples of one model.
      b: samples of the other.
      field: of a record, with its verdict.
      shared: ids of questions that both have.
      confidence: of the intervals.
      resamples: draws of the questions.
      seed: of the draws.
    """
    rated = [{r["id"] for r in each if r.get("confidence") is not None} for each in (a, b)]
    ids = [name for name in shared if name in rated[0] and name in rated[1]]
    place = {name: number for number, name in enumerate(ids)}
    sets = [
        sorted_answers(sorted((r for r in each if r["id"] in place), key=lambda r: place[r["id"]]), field)
        for each in (a, b)
    ]
    if None in sets:
        return []
    values = [risk.figures(answers) for answers in sets]
    draws = risk.bootstrap(sets, resamples, seed)
    return [
        _difference(name, values[0][name], values[1][name], draws[1][name] - draws[0][name], confidence)
        for name in risk.FIGURES
    ]


def _difference(name: str, a: float, b: float, gaps: np.ndarray, confidence: float) -> FigureDifference:
    known = gaps[np.isfinite(gaps)]
    found = risk.interval(gaps, confidence)
    if found is None:
        return FigureDifference(name, a, b, np.nan, np.nan, 1.0)
    sides = [(np.count_nonzero(side) + 1) / (len(known) + 1) for side in (known <= 0, known >= 0)]
    return FigureDifference(name, a, b, *found, min(1.0, 2 * min(sides)))
