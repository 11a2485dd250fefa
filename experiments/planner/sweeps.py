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
INTERVALS = {
    "pairwise_accuracy": "pairwise_interval",
    "macro_f1": "macro_f1_interval",
    "hit_at_1": "hit_interval",
    "mrr": "mrr_interval",
}
HEADER = ("setting", "discriminator", *METRICS, "ex", "minus the vote", "p", "minus base", "p")
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
    write_text(out / "table.md", markdown(list(HEADER), map(_cells, rows)))
    _plot(out / "budget.png", [row for row in rows if row["setting"].startswith("budget_")])
    return rows


def _rows(setting: str, report: Mapping[str, Any], base: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    if setting == "budget":
        for budget, variants in report["budgets"].items():
            for variant, found in variants.items():
                yield {**_row(f"budget_{budget}", variant, found), **_against_vote(found["pick"])}
        return
    correct = report["chosen"]["correct"]
    for variant, found in report["intrinsic"].items():
        row, name = _row(setting, variant, found), f"rerank, {variant}"
        if name in correct:
            row |= _against_vote(report["picks"][name])
            row |= _difference(report["chosen"], name, base) if base is not None and base is not report else {}
        yield row


def _row(setting: str, variant: str, found: Mapping[str, Any]) -> dict[str, Any]:
    metrics = {metric: found[metric] for metric in METRICS}
    ends = {
        f"{metric}_{end}": value
        for metric, interval in INTERVALS.items()
        for end, value in zip(("low", "high"), found[interval], strict=True)
    }
    picks = dict.fromkeys(f"{name}{part}" for name in ("vote", "base") for part in ("", "_low", "_high", "_p"))
    return {"setting": setting, "variant": variant, **metrics, **ends, "tokens": found["tokens"], "ex": None, **picks}


def _against_vote(pick: Mapping[str, float]) -> dict[str, float]:
    return {"ex": pick["ex"], **_gap("vote", pick)}


def _gap(name: str, found: Mapping[str, float]) -> dict[str, float]:
    ends = {f"{name}_{end}": found[f"difference_{end}"] for end in ("low", "high")}
    return {name: found["difference"], **ends, f"{name}_p": found["p_value"]}


def _difference(chosen: Mapping[str, Any], name: str, base: Mapping[str, Any]) -> dict[str, Any]:
    """Compares picks with those of `base` in the same mode, question by question."""
    words = [_WITHOUT_RESULTS.get(word, word) for word in name.split(" ")]
    reference = base["chosen"]["correct"].get(" ".join(words))
    if reference is None or base["chosen"]["ids"] != chosen["ids"]:
        return {}
    return _gap("base", pick_figures(chosen["correct"][name], reference))


def _cells(row: Mapping[str, Any]) -> list[str]:
    metrics = [_interval(row, metric) if metric in INTERVALS else _percent(row[metric]) for metric in METRICS]
    gaps = [cell for name in ("vote", "base") for cell in (_interval(row, name), _p_value(row[f"{name}_p"]))]
    return [row["setting"], row["variant"], *metrics, _percent(row["ex"]), *gaps]


def _interval(row: Mapping[str, Any], name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return "" if value is None else f"{_percent(value)} ({_percent(low)} to {_percent(high)})"


def _p_value(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


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
