"""Compares settings of one discriminator: its budget, the schema, worked examples, the outcome in the prompt.

  python -m experiments.planner.sweeps spider --config.data.source=FILE --config.data.databases=FOLDER \
      --config.discriminator.model=MODEL --out=runs/sweeps [--settings=schema,budget] [--budgets=256,512]

Each setting is a run of `smallr plan` in a folder of its own, so that a killed sweep goes on; table.md, table.csv and, for
budgets, budget.png are written at the end. Swap the roles of generator and discriminator by their two fields.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.cli.parsing import Parser
from smallr.core.comparison import markdown, write_csv
from smallr.core.errors import UserError
from smallr.core.files import write_text
from smallr.methods.planner.pipeline import run_planner

SETTINGS = ("base", "no_schema", "few_shot", "results", "budget")
METRICS = ("pairwise_accuracy", "macro_f1", "hit_at_1", "mrr", "fail_rate")


def configs(config: ConfigDict, settings: Sequence[str], budgets: Sequence[int]) -> Iterator[tuple[str, ConfigDict]]:
    """Yields the name and the config of each run."""
    for setting in settings:
        if setting not in SETTINGS:
            raise UserError(f"--settings: {setting!r} must be one of: {', '.join(SETTINGS)}")
        if setting == "budget":
            for budget in budgets:
                yield f"budget_{budget}", _changed(config, {"kinds": ("reasoning",), "budget": budget})
            continue
        changes: dict[str, Mapping[str, Any]] = {
            "base": {},
            "no_schema": {"context": False},
            "few_shot": {"few_shot": True},
            "results": {"modes": ("exec", "pro")},
        }
        yield setting, _changed(config, changes[setting])


def _changed(config: ConfigDict, fields: Mapping[str, Any]) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    changed.discriminator.update(fields)
    return changed


def sweep(config: ConfigDict, out: Path, settings: Sequence[str], budgets: Sequence[int]) -> list[dict[str, Any]]:
    """Runs what is missing, writes the tables, and returns a row for each setting and way to score."""
    rows = []
    for name, each in configs(config, settings, budgets):
        report = run_planner(each, out / name)
        for variant, found in report["intrinsic"].items():
            pick = report["picks"].get(f"rerank, {variant}", {})
            metrics = {metric: found[metric] for metric in METRICS}
            rows.append(
                {"setting": name, "variant": variant, **metrics, "ex": pick.get("ex"), "tokens": found["tokens"]}
            )
    write_csv(rows, out / "table.csv")
    cells = [
        [str(row["setting"]), row["variant"], *map(_percent, [*(row[m] for m in METRICS), row["ex"]])] for row in rows
    ]
    write_text(out / "table.md", markdown(["setting", "discriminator", *METRICS, "ex"], cells))
    _plot(out / "budget.png", [row for row in rows if row["setting"].startswith("budget_")])
    return rows


def _percent(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.1f}"


def _plot(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for variant in dict.fromkeys(row["variant"] for row in rows):
        points = [(int(row["setting"][7:]), row) for row in rows if row["variant"] == variant]
        for metric, style in (("pairwise_accuracy", "-"), ("fail_rate", ":")):
            values = [row[metric] for _, row in points]
            axes.plot([budget for budget, _ in points], values, style, marker="o", label=f"{variant}, {metric}")
    axes.set_xlabel("tokens that reasoning may take")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str]) -> None:
    """Reads the flags and runs the sweep."""
    parser = Parser("sweeps", __doc__ or "")
    parser.config("planner")
    parser.flag("out", "runs/sweeps", "folder of the runs")
    parser.flag("settings", ",".join(SETTINGS[:-1]), f"of {', '.join(SETTINGS)}, separated by commas")
    parser.flag("budgets", "256,400,512,700,1024,1536", "of the setting budget")
    options = parser.parse(argv)
    if options is not None:
        sweep(
            options.config, Path(options.out), options.settings.split(","), [int(b) for b in options.budgets.split(",")]
        )
        print((Path(options.out) / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
