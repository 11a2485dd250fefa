"""Compares arms over seeds and problems, and says of each claim of the paper whether it held."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smallr.core.comparison import markdown, mean
from smallr.evals.statistics import Difference, mcnemar, paired_difference, pass_at_1

Runs = Sequence[Mapping[str, Any]]  # of an arm: one a seed, with `seed` and `right`, a number for each problem


@dataclasses.dataclass(frozen=True)
class Claim:
    """Says that one arm is better than another, or no better.

    Attributes:
      text: as in the paper.
      arm, against: what is compared.
      better: whether the claim is that `arm` is better; else that it is not.
      size: of the student; empty for every size.
    """

    text: str
    arm: str
    against: str
    better: bool
    size: str = ""


MARGIN = 0.02  # a gain in accuracy that would not matter
CLAIMS = (
    Claim("Filtered BC beats BC", "filtered BC", "BC", True),
    Claim("ILQL with full rewards does not beat BC", "ILQL full", "BC", False),
    Claim("ILQL with sparse rewards does not beat BC", "ILQL sparse", "BC", False),
    Claim("ILQL does not beat filtered BC", "ILQL full", "filtered BC", False),
    Claim("No student reaches its teacher", "teacher", "filtered BC", True),
)


def together(arm: Runs, against: Runs) -> list[tuple[list[float], list[float]]]:
    """Returns the scores of both in each seed that both have."""
    others = {run["seed"]: run for run in against}
    return [(run["right"], others[run["seed"]]["right"]) for run in arm if run["seed"] in others]


def compare(arm: Runs, against: Runs) -> Difference | None:
    """Returns arm minus against, over problems: a problem is drawn with its scores of all seeds; None without a common seed.

    Each seed has its own training, on the same test problems, so seeds are samples of a problem.
    """
    both = together(arm, against)
    if not both:
        return None
    ours, theirs = (np.transpose([pair[side] for pair in both]).tolist() for side in (0, 1))
    return paired_difference(theirs, ours)


def verdict(claim: Claim, found: Difference | None) -> str:
    """Returns what an interval says of a claim.

    That an arm is better held if the interval is above 0, and did not if it is below. That it is no better did not hold if
    the interval is above 0; it held if no gain above `MARGIN` is left in it, and is else not contradicted.
    """
    if found is None:
        return "not run"
    above, below = found.low > 0, found.high < 0
    if claim.better:
        return "held" if above else "did not hold" if below else "not decided"
    return "did not hold" if above else "held" if found.high < MARGIN else "not contradicted"


def by_seed(arm: Runs, against: Runs) -> str:
    """Writes the difference of the means with Student's interval over seeds."""
    return mean([float(np.mean(a) - np.mean(b)) for a, b in together(arm, against)]).show(3, signed=True)


def interval(runs: Runs) -> str:
    """Writes accuracy over all seeds with its 95 % interval, clustered by problem."""
    estimate = pass_at_1(np.transpose([run["right"] for run in runs]).tolist())
    low, high = estimate.interval()
    return f"{estimate.value:.3f} [{low:.3f}, {high:.3f}]"


def mcnemar_by_seed(arm: Runs, against: Runs) -> str:
    """Writes the p value of the exact McNemar test of each seed."""
    values = []
    for ours, theirs in together(arm, against):
        better = sum(a > b for a, b in zip(ours, theirs, strict=True))
        worse = sum(a < b for a, b in zip(ours, theirs, strict=True))
        values.append(f"{mcnemar(better, worse):.3f}")
    return ", ".join(values)


def claims_table(arms: Mapping[tuple[str, str], Runs]) -> str:
    """Writes each claim with its difference and its verdict, for each size of student.

    Args:
      arms: (size, arm) -> runs.
    """
    lines = []
    for claim in CLAIMS:
        for size in dict.fromkeys(size for size, _ in arms):
            found = compare(arms.get((size, claim.arm), []), arms.get((size, claim.against), []))
            gap = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]" if found else "–"
            lines.append([claim.text, size, gap, verdict(claim, found)])
    lines += larger(arms)
    return markdown(["claim", "student", "difference over problems", "verdict"], lines)


def larger(arms: Mapping[tuple[str, str], Runs]) -> list[list[str]]:
    """Returns the lines of the claim that larger students write better sub-questions."""
    sizes = list(dict.fromkeys(size for size, _ in arms))
    lines = []
    for small, large in itertools.pairwise(sizes):
        for arm in ("BC", "filtered BC"):
            claim = Claim("A larger student is better", arm, arm, True)
            found = compare(arms.get((large, arm), []), arms.get((small, arm), []))
            gap = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]" if found else "–"
            lines.append([claim.text, f"{large} over {small}, {arm}", gap, verdict(claim, found)])
    return lines
