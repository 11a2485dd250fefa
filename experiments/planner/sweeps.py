"""Compares settings of one discriminator: its budget, the schema, worked examples, the outcome in the prompt, who proposes.

  python -m experiments.planner.sweeps spider --config.data.source=FILE --config.data.databases=FOLDER \
      --config.discriminator.model=MODEL --out=runs/sweeps [--settings=base,no_schema,budget] [--budgets=256,512]

Each setting is a run of `smallr plan` in a folder of its own, so that a killed sweep goes on. Budgets are one run with the
highest of them: answers are greedy, so those of a smaller budget are their beginnings. `swapped` needs
--config.generator.model, and lets the discriminator's model propose and the generator's judge. table.md, table.csv and, for
budgets, budget.png are written at the end; differences are from the setting `base` where it is among the settings.
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
from smallr.methods.planner.evaluation import pick_figures
from smallr.methods.planner.pipeline import run_planner

SETTINGS = ("base", "no_schema", "few_shot", "results", "budget", "swapped")
METRICS = ("pairwise_accuracy", "macro_f1", "hit_at_1", "mrr", "fail_rate")
_WITHOUT_RESULTS = {"exec": "naive", "pro": "check"}  # what the modes that show results are compared with


def configs(config: ConfigDict, settings: Sequence[str], budgets: Sequence[int]) -> Iterator[tuple[str, ConfigDict]]:
    """Yields the name and the config of each run.

    Raises:
      UserError: an unknown setting, or roles to swap where nobody generates.
    """
    for setting in settings:
        if setting not in SETTINGS:
            raise UserError(f"--settings: {setting!r} must be one of: {', '.join(SETTINGS)}")
        changes: dict[str, Mapping[str, Any]] = {
            "base": {},
            "no_schema": {"context": False},
            "few_shot": {"few_shot": True},
            "results": {"modes": ("exec", "pro")},
            "budget": {"kinds": ("reasoning",), "budget": max(budgets, default=1), "budgets": tuple(budgets)},
            "swapped": {"model": config.generator.model},
        }
        changed = config.copy_and_resolve_references()
        changed.discriminator.update(changes[setting])
        if setting == "swapped":
            if not config.generator.model:
                raise UserError(
                    "--settings=swapped: nobody proposes; name the other model with --config.generator.model"
                )
            changed.generator.model = config.discriminator.model
        yield setting, changed


def sweep(config: ConfigDict, out: Path, settings: Sequence[str], budgets: Sequence[int]) -> list[dict[str, Any]]:
    """Runs what is missing, writes the tables, and returns a row for each setting and way to score."""
    reports = {name: run_planner(each, out / name) for name, each in configs(config, settings, budgets)}
    rows = [row for name, report in reports.items() for row in _rows(name, report, reports.get("base"))]
    write_csv(rows, out / "table.csv")
    write_text(
        out / "table.md", markdown(["setting", "discriminator", *METRICS, "ex", "minus base", "p"], map(_cells, rows))
    )
    _plot(out / "budget.png", [row for row in rows if row["setting"].startswith("budget_")])
    return rows


def _rows(setting: str, report: Mapping[str, Any], base: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    if setting == "budget":
        for budget, variants in report["budgets"].items():
            for variant, found in variants.items():
                yield {**_row(f"budget_{budget}", variant, found), "ex": found["pick"]["ex"]}
        return
    correct = report["chosen"]["correct"]
    for variant, found in report["intrinsic"].items():
        row, name = _row(setting, variant, found), f"rerank, {variant}"
        if name in correct:
            row["ex"] = report["picks"][name]["ex"]
            row |= _difference(report["chosen"], name, base) if base is not None and base is not report else {}
        yield row


def _row(setting: str, variant: str, found: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {metric: found[metric] for metric in METRICS}
    empty = dict.fromkeys(("ex", "minus_base", "p_value"))
    return {"setting": setting, "variant": variant, **metrics, "tokens": found["tokens"], **empty}


def _difference(chosen: Mapping[str, Any], name: str, base: Mapping[str, Any]) -> dict[str, Any]:
    """Compares picks with those of `base` in the same mode, question by question."""
    words = [_WITHOUT_RESULTS.get(word, word) for word in name.split(" ")]
    reference = base["chosen"]["correct"].get(" ".join(words))
    if reference is None or base["chosen"]["ids"] != chosen["ids"]:
        return {}
    found = pick_figures(chosen["correct"][name], reference)
    return {"minus_base": found["difference"], "p_value": found["p_value"]}


def _cells(row: Mapping[str, Any]) -> list[str]:
    p_value = "" if row["p_value"] is None else f"{row['p_value']:.2g}"
    return [
        row["setting"],
        row["variant"],
        *map(_percent, [*(row[m] for m in METRICS), row["ex"], row["minus_base"]]),
        p_value,
    ]


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
    parser.flag("settings", ",".join(SETTINGS[:-2]), f"of {', '.join(SETTINGS)}, separated by commas")
    parser.flag("budgets", "256,400,512,700,1024,1536", "of the setting budget")
    options = parser.parse(argv)
    if options is not None:
        sweep(
            options.config, Path(options.out), options.settings.split(","), [int(b) for b in options.budgets.split(",")]
        )
        print((Path(options.out) / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
