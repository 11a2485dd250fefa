"""Compares discriminators that judged the same candidates, such as trained ones with the untrained one, and with the vote.

  python -m experiments.planner.judges untrained=runs/a sft=runs/b reward=runs/c --out=runs/judges

Each run is a folder of `smallr plan` on the same questions. Differences are paired, with a bootstrap interval over questions
and McNemar's exact test: from the vote, and from the first run in the same mode. table.md and table.csv are written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smallr.cli.parsing import Parser
from smallr.core.comparison import markdown, write_csv
from smallr.core.errors import UserError
from smallr.core.files import write_text
from smallr.methods.planner.evaluation import VOTE, pick_figures

HEADER = ("judge", "pair acc", "macro F1", "Hit@1", "MRR", "fails", "EX", "minus the vote", "p", "minus the first", "p")


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
    reference = {
        _mode(pick): correct for pick, correct in first["chosen"]["correct"].items() if pick.startswith("rerank,")
    }
    for variant, found in report["intrinsic"].items():
        correct = report["chosen"]["correct"][f"rerank, {variant}"]
        vote = pick_figures(correct, report["chosen"]["correct"][VOTE])
        other = (
            pick_figures(correct, reference[_mode(variant)])
            if report is not first and _mode(variant) in reference
            else None
        )
        yield {"judge": name, "variant": variant, "found": found, "vote": vote, "first": other}


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
                _percent(found["macro_f1"]),
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
            **{f"vote_{key}": value for key, value in row["vote"].items()},
        }
        for row in rows
    ]
    write_csv(flat, out / "table.csv")
    write_text(out / "table.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
