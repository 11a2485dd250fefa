"""Arms are compared over seeds and problems, and claims are judged by intervals."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.decomposition.verdicts import (
    CLAIMS,
    Claim,
    by_seed,
    claims_table,
    compare,
    interval,
    mcnemar_by_seed,
    together,
    verdict,
)
from smallr.evals.statistics import mcnemar


def runs(*rights) -> list[dict]:
    return [{"seed": seed, "right": [float(each) for each in right]} for seed, right in enumerate(rights)]


LOW, HIGH = [1] * 20 + [0] * 80, [1] * 60 + [0] * 40
BETTER, NO_BETTER = Claim("a", "x", "y", True), Claim("b", "x", "y", False)


@pytest.mark.parametrize(
    ("arm", "against", "better", "no_better"),
    [
        (HIGH, LOW, "held", "did not hold"),
        (LOW, HIGH, "did not hold", "held"),
        (LOW[::-1], LOW, "not decided", "not contradicted"),
        (LOW, LOW, "not decided", "held"),
    ],
)
def test_verdicts_follow_the_interval(arm, against, better, no_better):
    found = compare(runs(arm, arm), runs(against, against))
    assert verdict(BETTER, found) == better
    assert verdict(NO_BETTER, found) == no_better
    assert verdict(BETTER, compare([], runs(LOW))) == "not run"


def test_seeds_are_matched_and_problems_are_the_unit():
    assert together(runs(HIGH, LOW), runs(HIGH)) == [([*map(float, HIGH)], [*map(float, HIGH)])]
    once, thrice = compare(runs(HIGH), runs(LOW)), compare(runs(*[HIGH] * 3), runs(*[LOW] * 3))
    assert once.difference == pytest.approx(0.4)
    assert (once.low, once.high) == (thrice.low, thrice.high), "the same answers again tell nothing new of the problems"
    assert by_seed(runs(HIGH, HIGH, LOW), runs(LOW, LOW, LOW)).startswith("+0.267 ± ")
    assert mcnemar_by_seed(runs(HIGH), runs(LOW)) == f"{mcnemar(40, 0):.3f}"
    assert interval(runs(HIGH, LOW)).startswith("0.400 [")


def test_the_table_has_every_claim_for_every_size():
    rng = np.random.default_rng(0)
    names = ("BC", "filtered BC", "ILQL full", "ILQL sparse", "teacher")
    arms = {(size, name): runs(rng.random(50) < 0.5) for size in ("dist", "small") for name in names}
    arms["small", "teacher"] = []
    page = claims_table(arms)
    for claim in CLAIMS:
        assert page.count(f"| {claim.text} |") == 2
    assert page.count("not run") == 1
    assert page.count("| A larger student is better | small over dist") == 2
