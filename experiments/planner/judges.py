"""Compares discriminators that judged the same candidates, such as trained ones with the untrained one, and with the vote.

  python -m experiments.planner.judges untrained=runs/a sft=runs/b reward=runs/c --out=runs/judges

Each run is a folder of `smallr plan` on the same questions. Differences are paired, with a bootstrap interval over questions
and, for picks, McNemar's exact test: from the vote, and from the first run in the same mode. table.md, table.csv and judges.png
are written.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smallr.cli.parsing import Parser
from smallr.core.comparison import markdown, write_csv
from smallr.core.errors import UserError
from smallr.core.files import write_text
from smallr.methods.planner.evaluation import VOTE, pick_figures
from smallr.methods.planner.metrics import pairwise_gap

HEADER = (
    "judge",
    "pair acc",
    "minus the first",
    "macro F1",
    "Hit@1",
    "MRR",
    "fails",
    "EX",
    "minus the vote",
    "p",
    "minus the first",
    "p",
)


def compare(runs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Returns a row for each run and way to score.

    Raises:
      UserError: a folder without a report, or runs on other questions.
    """
    reports = {name: _report(folder) for name, folder in runs.items()}
    first = next(iter(reports.values()))
    for name, report in reports.items():
        if report["chosen"]["ids"] != first["chosen"]["ids"]:
            raise UserError(
                f"{runs[name]} has other questions than {next(iter(runs.values()))}: only equal ones can be compared"
            )
    return [row for name, report in reports.items() for row in _rows(name, report, first)]


def _report(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} has no report.json of `smallr plan` ({error})") from error


def _rows(name: str, report: Mapping[str, Any], first: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    reference = {_mode(variant): variant for variant in first["intrinsic"]}
    for variant, found in report["intrinsic"].items():
        correct = report["chosen"]["correct"][f"rerank, {variant}"]
        vote = pick_figures(correct, report["chosen"]["correct"][VOTE])
        other = None if report is first else reference.get(_mode(variant))
        gap = {} if other is None else _gaps(first, other, correct, found)
        yield {"judge": name, "variant": variant, "found": found, "vote": vote, "first": None, "pairs": None, **gap}


def _gaps(first: Mapping[str, Any], variant: str, correct: Sequence[bool], found: Mapping[str, Any]) -> dict[str, Any]:
    """Compares a judge's picks, and its order of pairs, with those of the first run's variant."""
    return {
        "first": pick_figures(correct, first["chosen"]["correct"][f"rerank, {variant}"]),
        "pairs": pairwise_gap(found["pairs"], first["intrinsic"][variant]["pairs"]),
    }


def _mode(variant: str) -> tuple[str, str]:
    """Returns the mode and the rule of a way to score; kinds may differ."""
    *_, mode, rule = variant.split(" ")
    return mode, rule


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes the rows for people, in %."""
    cells = []
    for row in rows:
        found, vote = row["found"], row["vote"]
        cells.append(
            [
                f"{row['judge']}, {row['variant']}",
                _interval(found["pairwise_accuracy"], *found["pairwise_interval"]),
                "" if row["pairs"] is None else _interval(*row["pairs"]),
                _interval(found["macro_f1"], *found["macro_f1_interval"]),
                _interval(found["hit_at_1"], *found["hit_interval"]),
                _interval(found["mrr"], *found["mrr_interval"]),
                _percent(found["fail_rate"]),
                _percent(vote["ex"]),
                *_gap(vote),
                *(("", "") if row["first"] is None else _gap(row["first"])),
            ]
        )
    return markdown(list(HEADER), cells)


def _gap(found: Mapping[str, float]) -> tuple[str, str]:
    return _interval(found["difference"], found["difference_low"], found["difference_high"]), f"{found['p_value']:.2g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return "–" if value is None else f"{_percent(value)} ({_percent(low)} to {_percent(high)})"


def main(argv: Sequence[str]) -> None:
    """Reads the runs and writes the tables."""
    parser = Parser("judges", __doc__ or "")
    parser.argument("runs", "NAME=FOLDER of each run, the one to compare with first", count="+")
    parser.flag("out", "runs/judges", "folder of the tables")
    options = parser.parse(argv)
    if options is None:
        return
    runs = dict(each.partition("=")[::2] for each in options.runs)
    rows = compare({name: Path(folder) for name, folder in runs.items()})
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    flat = [
        {
            "judge": row["judge"],
            "variant": row["variant"],
            **{key: value for key, value in row["found"].items() if isinstance(value, int | float)},
            **{f"vote_{key}": value for key, value in row["vote"].items()},
            **{f"first_{key}": value for key, value in (row["first"] or {}).items()},
        }
        for row in rows
    ]
    write_csv(flat, out / "table.csv")
    write_text(out / "table.md", table(rows))
    _plot(out / "judges.png", rows)
    print(table(rows))


def _plot(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws pairwise accuracy and execution match of each judge with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.5 + 0.35 * len(rows)), layout="constrained")
    names = [f"{row['judge']}, {row['variant']}" for row in rows]
    axes = figure.subplots(1, 2, sharey=True)
    for axis, title, each in zip(axes, ("pairwise accuracy", "execution match"), (_pair_bars, _ex_bars), strict=True):
        values, low, high = zip(*map(each, rows), strict=True)
        ends = [[max(v - a, 0.0) for v, a in zip(values, low, strict=True)]]
        ends += [[max(b - v, 0.0) for v, b in zip(values, high, strict=True)]]
        axis.errorbar(values, names, xerr=ends, fmt="o")
        axis.set_xlabel(title)
    axes[0].axvline(0.5, color="black", linestyle=":")
    axes[1].axvline(rows[0]["vote"]["ex"] - rows[0]["vote"]["difference"], color="black", linestyle="--")
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def _pair_bars(row: Mapping[str, Any]) -> tuple[float, float, float]:
    found = row["found"]
    values = (found["pairwise_accuracy"], *found["pairwise_interval"])
    return tuple(math.nan if value is None else value for value in values)


def _ex_bars(row: Mapping[str, Any]) -> tuple[float, float, float]:
    return row["vote"]["ex"], row["vote"]["low"], row["vote"]["high"]


if __name__ == "__main__":
    main(sys.argv[1:])
