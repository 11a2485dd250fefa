"""Turns rows of runs into means with intervals over seeds, differences, CSV, markdown and plots.

A row is a flat dict with the settings and the metrics of one run, as `smallr.core.stages.Stages.run` returns them.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Mean:
    """Holds a mean over runs and the half width of its interval (NaN for one run).

    Attributes:
      count: number of runs.
    """

    value: float
    half: float
    count: int

    def show(self, digits: int = 3, signed: bool = False) -> str:
        """Writes `0.512 ± 0.030`, or without interval if there is none; a dash for no runs."""
        if not self.count:
            return "–"
        number = f"{self.value:{'+' if signed else ''}.{digits}f}"
        return number if math.isnan(self.half) else f"{number} ± {self.half:.{digits}f}"


def mean(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """Returns the mean and Student's interval: t(n - 1) * s / sqrt(n). NaN values are left out."""
    known = np.array([value for value in values if not math.isnan(value)], float)
    if len(known) < 2:
        return Mean(float(known[0]) if len(known) else math.nan, math.nan, len(known))
    half = special.stdtrit(len(known) - 1, 0.5 + confidence / 2) * known.std(ddof=1) / math.sqrt(len(known))
    return Mean(float(known.mean()), float(half), len(known))


def groups(rows: Sequence[Row], by: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Returns rows with the same values of the settings `by`, in the order in which these first occur."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in by), []).append(row)
    return found


def means(rows: Sequence[Row], metric: str) -> Mean:
    """Averages over the rows that have the metric."""
    return mean([row[metric] for row in rows if row.get(metric) is not None])


def difference(rows: Sequence[Row], baseline: Sequence[Row], metric: str, over: str = "seed") -> Mean:
    """Returns the mean of row minus baseline of the same seed; seeds that only one of them has are left out."""
    before = {row[over]: row[metric] for row in baseline if row.get(metric) is not None}
    pairs = [(row[metric], before[row[over]]) for row in rows if row[over] in before and row.get(metric) is not None]
    return mean([after - earlier for after, earlier in pairs])


def can_plot() -> bool:
    """Returns whether matplotlib, an extra, is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def say_if_no_plots() -> None:
    """Prints a line if there will be no plots; to be asked before the first run, not after the last."""
    if not can_plot():
        print("there will be no plots, since matplotlib is not installed: pip install matplotlib", flush=True)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes all runs; a cell is empty where a run has no such column."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def markdown(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Returns a table; a `|` in a cell is escaped."""
    cells = [[str(cell).replace("|", r"\|") for cell in line] for line in (headers, ["---"] * len(headers), *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def table(rows: Sequence[Row], by: Sequence[str], metrics: Mapping[str, str], digits: int = 3) -> str:
    """Returns a line for each group with the means of the metrics over its runs.

    Args:
      rows: of runs.
      by: settings that tell the groups apart.
      metrics: name of a metric -> header of its column.
      digits: behind the point.
    """
    lines = [
        [*map(str, values), str(len(members)), *(means(members, metric).show(digits) for metric in metrics)]
        for values, members in groups(rows, by).items()
    ]
    return markdown([*by, "runs", *metrics.values()], lines)


def bars(rows: Sequence[Row], by: str, metrics: Mapping[str, str], path: Path) -> None:
    """Plots one panel for each metric, one bar with its interval for each group, one dot for each run."""
    from matplotlib.figure import Figure

    found = groups(rows, [by])
    names = [str(values[0]) for values in found][::-1]
    figure = Figure(figsize=(2.6 * len(metrics), 1.2 + 0.35 * len(names)), layout="constrained")
    for i, (metric, title) in enumerate(metrics.items()):
        axes = figure.add_subplot(1, len(metrics), i + 1)
        members = list(found.values())[::-1]
        averages = [means(each, metric) for each in members]
        axes.barh(
            range(len(names)),
            [average.value for average in averages],
            xerr=np.nan_to_num([average.half for average in averages]),
            color="#9ab8d4",
            error_kw={"linewidth": 1},
        )
        for y, each in enumerate(members):
            known = [row[metric] for row in each if row.get(metric) is not None]
            axes.plot(known, [y] * len(known), ".", color="#1f3b57", markersize=4)
        axes.set_title(title, fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)  # the same place in all panels, also where a group lacks the metric
        axes.tick_params(labelsize=8, labelleft=i == 0)
    figure.savefig(path, dpi=120)


def curves(
    panels: Mapping[str, tuple[Sequence[Row], str]], metrics: Mapping[str, str], path: Path, note: str = ""
) -> None:
    """Plots metrics over a setting: one column a panel, one row of axes a metric.

    Args:
      panels: title -> the rows of a sweep and the setting that it varies.
      metrics: name -> title of the axis.
      path: of the image.
      note: below the figure.
    """
    from matplotlib.figure import Figure

    size = (2.9 * len(panels), 2.2 * len(metrics) + 0.4)
    axes = Figure(figsize=size, layout="constrained").subplots(len(metrics), len(panels), squeeze=False, sharey="row")
    for column, (title, (rows, setting)) in enumerate(panels.items()):
        found = groups(rows, [setting])
        positions = range(len(found))
        for line, (metric, label) in enumerate(metrics.items()):
            panel = axes[line][column]
            averages = [means(members, metric) for members in found.values()]
            values, halves = [a.value for a in averages], np.nan_to_num([a.half for a in averages])
            panel.errorbar(positions, values, yerr=halves, marker="o", markersize=4, linewidth=1, capsize=3)
            panel.set_xticks(positions, [str(value[0]) for value in found], fontsize=8)
            panel.tick_params(labelsize=8)
            panel.grid(alpha=0.3)
            if not line:
                panel.set_title(title, fontsize=9)
            if not column:
                panel.set_ylabel(label, fontsize=8)
    figure = axes[0][0].figure
    if note:
        figure.supxlabel(note, fontsize=8)
    figure.savefig(path, dpi=120)
