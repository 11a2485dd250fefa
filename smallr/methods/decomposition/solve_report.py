"""Reports what solving with a student came to: solved.jsonl, report.json, and report.md for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.core.comparison import Mean, markdown, mean
from smallr.core.files import write_json, write_text
from smallr.evals.statistics import pass_at_1
from smallr.language.base import Prices
from smallr.sampling.requests import Usage

_SAMPLES = 3


def write_solve_report(
    folder: Path,
    config: ConfigDict,
    rows: Sequence[Mapping[str, Any]],
    left_out: Mapping[str, Sequence[str]],
    cut: int,
    usage: Mapping[str, int],
) -> dict[str, Any]:
    """Writes the files and returns what is in report.json.

    Args:
      folder: of the run.
      config: of the run.
      rows: of `solving.score`.
      left_out: problems that could not be read, by reason.
      cut: how many of the student's texts were cut off.
      usage: of the solver.
    """
    report = {
        "student": config.student.model or config.student.rows or config.student.advantage,
        "solver": config.solver.model,
        "parser": config.parser,
        "problems": len(rows),
        "left_out": {reason: len(places) for reason, places in left_out.items()},
        "cut": cut,
        "no_answer": dict(Counter(row["no_answer"] for row in rows if row["no_answer"]).most_common()),
        **measures(rows),
        "usage": dict(usage),
        "cost": _cost(config, usage),
        "config": json.loads(json.dumps(config.to_dict())),
    }
    write_json(folder / "report.json", report)
    write_text(folder / "solved.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    write_text(folder / "report.md", page(report, rows))
    return report


def _cost(config: ConfigDict, usage: Mapping[str, int]) -> float:
    prices, tokens = Prices(config.solver.prices.prompt, config.solver.prices.completion), Usage()
    if usage:
        tokens = Usage(usage["prompt_tokens"], usage["completion_tokens"])
    return (tokens.prompt_tokens * prices.prompt + tokens.completion_tokens * prices.completion) / 1e6


def measures(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float] | None]:
    """Computes each measure with its 95 % interval over problems; None where it was not measured."""
    found: dict[str, list[float] | None] = {
        "accuracy": _share([row["correct"] for row in rows]),
        "repeated": _share([row["repeated"] for row in rows]),
    }
    for name in ("granularity", "bleu"):
        values = [row[name] for row in rows if row[name] is not None]
        estimate: Mean | None = mean(values) if values else None
        found[name] = (
            [estimate.value, estimate.value - estimate.half, estimate.value + estimate.half] if estimate else None
        )
    return {"referenced": sum(row["bleu"] is not None for row in rows), **found}


def _share(flags: Sequence[bool | None]) -> list[float] | None:
    known = [float(flag) for flag in flags if flag is not None]
    if not known:
        return None
    estimate = pass_at_1([[flag] for flag in known])
    return [estimate.value, *estimate.interval()]


def page(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes the report for people."""
    lines = []
    for name, scale in (("accuracy", 100), ("granularity", 1), ("bleu", 1), ("repeated", 1)):
        if report[name]:
            value, low, high = (f"{scale * number:.{1 if scale > 1 else 3}f}" for number in report[name])
            lines.append([f"{name}{', percent' if scale > 1 else ''}", value, f"{low} to {high}"])
    remarks = [f"{count} problems are left out, {reason}." for reason, count in report["left_out"].items()]
    if report["cut"]:
        remarks.append(f"{report['cut']} of the student's texts were cut off (config.student.max_tokens).")
    remarks += [
        f"{count} problems have no answer and count as wrong: {why}." for why, count in report["no_answer"].items()
    ]
    if report["usage"]:
        used = report["usage"]
        remarks.append(
            f"The solver was asked {used['requests']} times ({used['reasks']} again), with {used['prompt_tokens']} + "
            f"{used['completion_tokens']} tokens; cost at the given prices {report['cost']:.4f}."
        )
    if report["granularity"] and report["referenced"] < report["problems"]:
        remarks.append(f"Granularity and BLEU are over the {report['referenced']} problems with a reference.")
    return "\n".join(
        [
            "# Sub-questions of a student",
            "",
            f"Student: {report['student']}. Solver: {report['solver'] or 'none'}. {report['problems']} problems.",
            "",
            markdown(["measure", "value", "95 % interval"], lines),
            *(f"* {remark}" for remark in remarks),
            *([""] if remarks else []),
            "## Samples",
            "",
            *_samples(rows),
        ]
    )


def _samples(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for title, correct in (("right", True), ("wrong", False), ("no solver", None)):
        for row in [row for row in rows if row["correct"] is correct][:_SAMPLES]:
            text = "\n".join(
                filter(None, (row["problem"], row["questions"] or "(nothing)", row["answers"], f"gold: {row['gold']}"))
            )
            lines += [f"### {title}", "", *(f"    {line}" for line in text.splitlines()), ""]
    return lines
