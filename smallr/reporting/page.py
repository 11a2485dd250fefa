"""Writes one page on one or several runs: curves, tables, samples, configuration and environment, in one HTML file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from smallr.core.errors import UserError
from smallr.core.files import read_json, write_text
from smallr.reporting.charts import Series, chart
from smallr.training.metrics import read_metrics

SAMPLES = "samples.json"  # what `smallr.reporting.samples` writes; not imported here, since that needs JAX
COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
# Metrics in the order in which people look at them; others follow by name.
_FIRST = ("loss", "accuracy", "token_accuracy", "margin", "reward_chosen", "reward_rejected", "kl", "nll_answer_token")
_LAST = ("learning_rate", "grad_norm", "tokens_per_second", "seconds_per_step", "mfu", "input_wait", "padding")
_NO_CURVE = ("step", "time", "split", "epoch", "num_tokens")


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Holds what a run has left in its workdir.

    Attributes:
      name: by which the page calls it.
      config: nested.
      lines: of metrics.
      report: of the end of the run; empty before.
      samples: what the model wrote before and after; empty if nobody asked for it.
    """

    name: str
    config: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    report: Mapping[str, Any]
    samples: Sequence[Mapping[str, str]]


def open_run(workdir: Path, name: str) -> RunFiles:
    """Reads a run's files.

    Raises:
      UserError: the folder is no run, or one without a line of metrics.
    """
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir}: not a run (it has no config.json)")
    lines = read_metrics(workdir)
    if not lines:
        raise UserError(f"{workdir}: the run has no metrics yet")
    report, samples = ((workdir / file) for file in ("report.json", SAMPLES))
    return RunFiles(
        name,
        read_json(workdir / "config.json", fields={"config": dict})["config"],
        lines,
        read_json(report) if report.exists() else {},
        read_json(samples, fields={"samples": list})["samples"] if samples.exists() else (),
    )


def open_runs(workdirs: Sequence[Path]) -> list[RunFiles]:
    """Reads several runs; they are named by what tells their paths apart."""
    parts = [path.absolute().parts for path in workdirs]
    shared = 0
    while len(parts) > 1 and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    names = ["/".join(p[shared:]) if len(parts) > 1 else "/".join(p[-2:]) for p in parts]
    if len(set(names)) < len(names):
        raise UserError("smallr report: one run is named twice")
    return [open_run(path, name) for path, name in zip(workdirs, names, strict=True)]


def write_page(runs: Sequence[RunFiles], target: Path) -> None:
    """Writes the page; it needs nothing beside it."""
    environment = Environment(
        loader=PackageLoader("smallr.reporting", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html").render(
        runs=runs,
        colours=[COLOURS[i % len(COLOURS)] for i in range(len(runs))],
        charts=[(name, Markup(svg)) for name, svg in _charts(runs)],
        overview=_overview(runs),
        heldout=_heldout(runs),
        evaluations=[list(_evaluations(run.report)) for run in runs],
        differing=_differing(runs),
        configs=[json.dumps(run.config, indent=2) for run in runs],
    )
    write_text(target, page)


def _charts(runs: Sequence[RunFiles]) -> list[tuple[str, str]]:
    """Draws every metric that has two points or more in some run, train and held-out rows in one frame."""
    names = {name for run in runs for line in run.lines for name in line if name not in _NO_CURVE}
    drawn = []
    for name in sorted(names, key=_place):
        series = []
        for colour, run in zip(COLOURS * len(runs), runs, strict=False):
            for split in ("train", "eval", "benchmark"):
                lines = [
                    line for line in run.lines if line["split"] == split and isinstance(line.get(name), float | int)
                ]
                points = [(line["step"], float(line[name])) for line in lines]
                if points:
                    series.append(Series(f"{run.name} {split}", colour, points, markers=split != "train"))
        if max((len(line.points) for line in series), default=0) > 1 and (svg := chart(name, series)):
            drawn.append((name, svg))
    return drawn


def _place(name: str) -> tuple[int, int, str]:
    if name in _FIRST:
        return 0, _FIRST.index(name), name
    return (2, _LAST.index(name), name) if name in _LAST else (1, 0, name)


def _overview(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Returns the first table: a line a fact, a column a run."""
    rows = {
        "model": [str(run.config["model"]) for run in runs],
        "objective": [_objective(run.config) for run in runs],
        "training rows": [_source(run.config) for run in runs],
        "state": [_state(run) for run in runs],
        "tokens seen": [f"{_last(run, 'num_tokens'):,.0f}" if _last(run, "num_tokens") else "–" for run in runs],
        "epochs": [f"{_last(run, 'epoch'):.2f}" if _last(run, "epoch") else "–" for run in runs],
        "seconds": [_seconds(run.report) for run in runs],
        "best": [_best(run.report) for run in runs],
    }
    rows |= {
        name: [str(run.report.get("environment", {}).get(name, "–")) for run in runs]
        for name in dict.fromkeys(name for run in runs for name in run.report.get("environment", {}))
    }
    return [(name, values) for name, values in rows.items() if any(value != "–" for value in values)]


def _objective(config: Mapping[str, Any]) -> str:
    objective = config["objective"]
    return f"{objective['name']}: {objective['loss']}" if "loss" in objective else str(objective["name"])


def _source(config: Mapping[str, Any]) -> str:
    train = config["data"]["train"]
    return train if isinstance(train, str) else ", ".join(str(entry.get("path", entry)) for entry in train)


def _state(run: RunFiles) -> str:
    step = max(line["step"] for line in run.lines)
    return f"finished, {run.report['steps']} steps" if run.report.get("finished") else f"at step {step}"


def _last(run: RunFiles, name: str) -> float:
    return next((line[name] for line in reversed(run.lines) if name in line), 0.0)


def _seconds(report: Mapping[str, Any]) -> str:
    laps = report.get("seconds", {})
    return ", ".join(f"{name} {value:,.1f}" for name, value in laps.items()) or "–"


def _best(report: Mapping[str, Any]) -> str:
    best = report.get("best")
    return f"step {best['step']}: {best['metric']} {best['value']:.4f}" if best else "–"


def _heldout(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Returns metrics of the held-out rows for the columns of `_evaluations` of all runs."""
    names = dict.fromkeys(name for run in runs for name in run.report.get("after") or {})
    columns = [values for run in runs for values in _evaluations(run.report).values()]
    return [(name, [f"{values[name]:.4f}" if name in values else "–" for values in columns]) for name in names]


def _evaluations(report: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Returns what was measured before and after training, and by the best evaluation where that is not the last one."""
    columns = {"before": report.get("before") or {}, "after": report.get("after") or {}}
    best = report.get("best")
    if best and best["step"] != report["steps"]:
        columns[f"best, step {best['step']}"] = best.get("metrics", {})
    return columns


def _differing(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """Returns the fields of the configuration that differ between the runs."""
    flat = [_flat(run.config) for run in runs]
    names = dict.fromkeys(name for fields in flat for name in fields)
    rows = [(name, [json.dumps(fields[name]) if name in fields else "–" for fields in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
