"""Reports an evaluation by difficulty: accuracy, tokens and gain over a baseline in each bin, as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smallr.core.comparison import can_plot, mean
from smallr.core.files import whole_file
from smallr.evals.records import Record, question_means, scores
from smallr.evals.statistics import Scores, paired_difference, pass_at_1
from smallr.evals.trust.difficulty import Bins

PLOT = "difficulty.png"
Gain = dict[str, Any]


def report(
    records: Sequence[Record],
    bins: Bins,
    measure: str,
    *,
    field: str = "correct",
    baseline: Mapping[str, Sequence[float]] | None = None,
    baseline_model: str = "",
) -> dict[str, Any]:
    """Returns the figures of each bin, as JSON holds them, and writes `bin` into the records.

    Args:
      records: of the evaluation.
      bins: of its questions.
      measure: by which they were made.
      field: of a record, in which its score is.
      baseline: scores of another model by question; questions that it was not asked count in no gain.
      baseline_model: its name.
    """
    own = scores(records, field)
    for record in records:
        if record["id"] in bins.of:
            record["bin"] = bins.names[bins.of[record["id"]]]
    return {
        "measure": measure,
        "baseline": baseline_model,
        "unknown": len([name for name in own if name not in bins.of]),
        "bins": [
            _bin(name, [each for each in bins.members(index) if each in own], records, own, baseline)
            for index, name in enumerate(bins.names)
        ],
    }


def _bin(
    name: str,
    members: Sequence[str],
    records: Sequence[Record],
    own: Mapping[str, Sequence[float]],
    baseline: Mapping[str, Sequence[float]] | None,
) -> dict[str, Any]:
    estimate, known = pass_at_1([own[each] for each in members]), set(members)
    written = mean(question_means([record for record in records if record["id"] in known], "tokens"))
    return {
        "bin": name,
        "questions": len(members),
        "accuracy": None if not members else estimate.value,
        "interval": list(estimate.interval()),
        "tokens": _plain(written.value),
        "tokens_half": _plain(written.half),
        "gain": gain(members, own, baseline) if baseline is not None else None,
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else value


def gain(members: Sequence[str], own: Mapping[str, Any], baseline: Mapping[str, Any]) -> Gain | None:
    """Returns how much better the questions of a bin are answered than by the baseline; None if it has none of them."""
    shared = [name for name in members if name in own and name in baseline]
    if not shared:
        return None
    pairs: list[Scores] = [[each[name] for name in shared] for each in (baseline, own)]
    found = paired_difference(*pairs, resamples=2000)
    return {
        "questions": len(shared),
        "difference": found.difference,
        "interval": [found.low, found.high],
        "p_value": found.p_value,
    }


def bin_names(figures: Mapping[str, Any]) -> list[str]:
    """Returns the names of the bins of a report, from the easiest to the hardest."""
    return [each["bin"] for each in figures["bins"]]


def gain_by_bin(
    records: Sequence[Record], own: Mapping[str, Any], baseline: Mapping[str, Any], order: Sequence[str]
) -> dict[str, Gain]:
    """Returns the gain in each bin of which both have questions.

    Args:
      records: with `bin`; those without one are left out.
      own: scores by question.
      baseline: those of the model that the gain is over.
      order: names of the bins.
    """
    members = {name: dict.fromkeys(record["id"] for record in records if record.get("bin") == name) for name in order}
    return {name: found for name in order if (found := gain(list(members[name]), own, baseline)) is not None}


def shown(gain: Mapping[str, Any] | None) -> str:
    """Writes a gain with its interval."""
    if gain is None:
        return "–"
    return f"{gain['difference']:+.3f} ({gain['interval'][0]:+.3f} … {gain['interval'][1]:+.3f})"


def lines(figures: Mapping[str, Any]) -> list[str]:
    """Returns the table as lines of text."""
    against = f"; gain over {figures['baseline']}" if figures["baseline"] else ""
    found = [f"by difficulty ({figures['measure']}){against}"]
    for each in figures["bins"]:
        if not each["questions"]:
            continue
        low, high = each["interval"]
        tokens = "" if each["tokens"] is None else f", tokens {each['tokens']:.1f}"
        tokens += "" if each["tokens_half"] is None else f" ± {each['tokens_half']:.1f}"
        more = f", gain {shown(each['gain'])}" if figures["baseline"] else ""
        found.append(
            f"  {each['bin']}: {each['questions']} questions, {each['accuracy']:.3f} ({low:.3f} … {high:.3f}){tokens}{more}"
        )
    if figures["unknown"]:
        found.append(f"  difficulty not known: {figures['unknown']} questions")
    return found


def plot(figures: Mapping[str, Any], path: Path) -> bool:
    """Draws accuracy, tokens and gain by bin, with their intervals; returns whether it did (it needs matplotlib)."""
    bins = [each for each in figures["bins"] if each["questions"]]
    if not bins or not can_plot():
        return False
    from matplotlib.figure import Figure

    panels: dict[str, list[tuple[float, float, float]]] = {}
    panels["accuracy"] = [(each["accuracy"], *each["interval"]) for each in bins]
    if all(each["tokens"] is not None for each in bins):
        halves = [each["tokens_half"] or 0.0 for each in bins]
        panels["tokens"] = [
            (each["tokens"], each["tokens"] - half, each["tokens"] + half)
            for each, half in zip(bins, halves, strict=True)
        ]
    if all(each["gain"] for each in bins):
        panels[f"gain over {figures['baseline']}"] = [
            (each["gain"]["difference"], *each["gain"]["interval"]) for each in bins
        ]
    figure = Figure(figsize=(3.4 * len(panels), 2.9), layout="constrained")
    for axes, (title, points) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        values, low, high = np.array(points).T
        around = np.maximum([values - low, high - values], 0)
        axes.errorbar(range(len(bins)), values, yerr=around, marker="o", markersize=4, linewidth=1, capsize=3)
        axes.set_xticks(range(len(bins)), [each["bin"] for each in bins], fontsize=8, rotation=20)
        axes.set(xlabel=figures["measure"])
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        if title.startswith("gain"):
            axes.axhline(0, color="grey", linewidth=0.8)
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)
    return True
