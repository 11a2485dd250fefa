"""Makes the part of an evaluation's report that says whether its confidences can be relied on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from smallr.core.comparison import can_plot
from smallr.evals.records import Record
from smallr.evals.statistics import Estimate, pass_at_1
from smallr.evals.trust import risk
from smallr.evals.trust.risk import Sorted
from smallr.language.calibration import Calibration

PLOT = "trust.png"
_POINTS = 200  # of a curve

MEANINGS = {
    "accuracy": "right answers",
    "confidence": "mean confidence",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "aurc": "area under risk-coverage",
    "auroc": "right above wrong",
    "coverage@1%": "answered at 1 % errors",
    "coverage@5%": "answered at 5 % errors",
    "coverage@10%": "answered at 10 % errors",
}


def question_digest(record: Record) -> str:
    """Returns what tells a question from others, in any order of the rows."""
    return hashlib.sha256(record["prompt"].encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sorted_answers(records: Sequence[Record], field: str) -> Sorted | None:
    """Returns the answers that have a confidence, by question; None if none has."""
    rated = [r for r in records if r.get("confidence") is not None and r["reason"] != "no result"]
    if not rated:
        return None
    numbers = {name: number for number, name in enumerate(dict.fromkeys(record["id"] for record in rated))}
    return Sorted.of(
        [record["confidence"] for record in rated],
        [float(record[field]) for record in rated],
        [numbers[record["id"]] for record in rated],
    )


def summarise(
    records: Sequence[Record], field: str, measure: str, calibration: Calibration | None
) -> dict[str, Any] | None:
    """Returns all figures with bootstrap intervals and the points of both curves, as JSON holds them; None without any."""
    answers = sorted_answers(records, field)
    if answers is None:
        return None
    values, (draws,) = risk.figures(answers), risk.bootstrap([answers])
    digests = {question_digest(record) for record in records}
    seen = sorted(digests & set(calibration.questions)) if calibration else []
    return {
        "measure": measure,
        "calibration": None if calibration is None else {"method": calibration.method, **calibration.fitted_on},
        "questions_of_the_fit": len(seen),
        "answers": len(answers.confidence),
        "without_answer": sum(map(_is_without_answer, records)),
        # A bootstrap has no width where all answers are right, or all wrong; Wilson's interval has.
        "figures": {name: _figure(values[name], draws[name]) for name in values}
        | {"accuracy": {"value": values["accuracy"], "interval": list(_accuracy(answers).interval())}},
        "reliability": reliability(answers),
        "risk_coverage": risk_coverage(answers),
    }


def _is_without_answer(record: Record) -> bool:
    """Returns whether a rated sample gave no answer; an answer may have the confidence 0 too."""
    return record.get("measured") == 0 and not record.get("answer_span")


def _figure(value: float, draws: np.ndarray) -> dict[str, Any]:
    found = risk.interval(draws)
    return {"value": None if math.isnan(value) else value, "interval": None if found is None else list(found)}


def _accuracy(answers: Sorted, chosen: np.ndarray | slice = slice(None)) -> Estimate:
    """Returns the share of right answers among some; its interval is Wilson's, clustered by question."""
    scores: dict[int, list[float]] = {}
    for question, correct in zip(answers.question[chosen].tolist(), answers.correct[chosen].tolist(), strict=True):
        scores.setdefault(question, []).append(correct)
    return pass_at_1(list(scores.values()))


def reliability(answers: Sorted, bins: int = risk.BINS) -> list[dict[str, Any]]:
    """Returns for each bin that is not empty its answers, their mean confidence, and their accuracy.

    Its interval is Wilson's, clustered by question.
    """
    numbers = risk.bin_of(answers.confidence, bins)
    found = []
    for number in np.unique(numbers):
        inside = numbers == number
        accuracy = _accuracy(answers, inside)
        found.append(
            {
                "from": number / bins,
                "to": (number + 1) / bins,
                "answers": int(inside.sum()),
                "confidence": float(answers.confidence[inside].mean()),
                "accuracy": accuracy.value,
                "interval": list(accuracy.interval()),
            }
        )
    return found


def risk_coverage(answers: Sorted) -> list[dict[str, float]]:
    """Returns threshold, coverage and risk at each threshold; of many the curve keeps some, and those of `coverage_at`."""
    passed = answers.ends + 1
    risks = np.cumsum(1 - answers.correct)[answers.ends] / passed
    spread = np.linspace(0, len(passed) - 1, min(_POINTS, len(passed))).round().astype(int)
    named = [np.flatnonzero(risks <= allowed + 1e-12)[-1:] for allowed in risk.RISKS]
    kept = np.unique(np.concatenate([spread, *named]))
    return [
        {
            "threshold": float(answers.confidence[answers.ends[index]]),
            "coverage": float(passed[index] / len(answers.confidence)),
            "risk": float(risks[index]),
        }
        for index in kept
    ]


def table(trust: dict[str, Any]) -> Table:
    """Makes the table that `smallr evaluate` prints."""
    found = Table(title=f"confidence: {title(trust)}")
    for column in ("figure", "value", "95 % interval", "meaning"):
        found.add_column(column, justify="right" if column in ("value", "95 % interval") else "left")
    for name, figure in trust["figures"].items():
        value = "–" if figure["value"] is None else f"{figure['value']:.4f}"
        interval = "–" if figure["interval"] is None else "{:.3f} … {:.3f}".format(*figure["interval"])
        found.add_row(name, value, interval, MEANINGS[name])
    return found


def title(trust: dict[str, Any]) -> str:
    """Says which confidence the figures are of."""
    fitted = trust["calibration"]
    if fitted is None:
        return f"{trust['measure']}, not calibrated"
    split = f" {fitted['split']}" if fitted["split"] else ""
    return f"{trust['measure']}, by {fitted['method']} fitted on {Path(fitted['data']).name}{split}"


def remarks(trust: dict[str, Any]) -> list[str]:
    """Says what a reader of the table must know besides."""
    found = []
    if trust["without_answer"]:
        found.append(f"without an answer, so with confidence 0: {trust['without_answer']} of {trust['answers']}")
    if trust["questions_of_the_fit"]:
        found.append(
            f"THE CALIBRATION HAS SEEN {trust['questions_of_the_fit']} OF THESE QUESTIONS: ECE and Brier are too good here"
        )
    return found


def plot(trust: dict[str, Any], path: Path) -> bool:
    """Draws the reliability diagram and the risk-coverage curve; False where matplotlib is not installed."""
    if not can_plot():
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_reliability(left, trust)
    _draw_risk(right, trust)
    figure.suptitle(title(trust), fontsize=9)
    figure.savefig(path, dpi=120)
    return True


def _draw_reliability(axes: Any, trust: dict[str, Any]) -> None:
    bins = trust["reliability"]
    most = max(each["answers"] for each in bins)
    for each in bins:
        axes.bar(each["from"], 0.25 * each["answers"] / most, each["to"] - each["from"], align="edge", color="#d7e3ee")
    x, y = ([each[name] for each in bins] for name in ("confidence", "accuracy"))
    errors = [[abs(each["accuracy"] - each["interval"][side]) for each in bins] for side in (0, 1)]
    axes.plot([0, 1], [0, 1], "--", color="#999999", linewidth=1)
    axes.errorbar(x, y, yerr=errors, fmt="o-", color="#1f3b57", markersize=4, linewidth=1, capsize=2)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of right answers")
    axes.set_title(f"reliability, ECE {trust['figures']['ece']['value']:.3f}", fontsize=9)


def _draw_risk(axes: Any, trust: dict[str, Any]) -> None:
    points = trust["risk_coverage"]
    axes.step([p["coverage"] for p in points], [p["risk"] for p in points], where="mid", color="#1f3b57", linewidth=1)
    axes.axhline(1 - trust["figures"]["accuracy"]["value"], linestyle="--", color="#999999", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="coverage: share of questions answered", ylabel="risk: errors among them")
    axes.set_title(f"risk and coverage, AURC {trust['figures']['aurc']['value']:.3f}", fontsize=9)
