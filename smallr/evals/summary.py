"""Summarises the records of an evaluation as figures and a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from smallr.data.drops import DropReport
from smallr.evals.benchmarks.base import Benchmark, Generation
from smallr.evals.records import Record, scores
from smallr.evals.statistics import Estimate, majority_is_right, mean_pass_at_k, pass_at_1
from smallr.evals.trust import agreement, by_difficulty, cost, report


def summarise(benchmark: Benchmark, records: Sequence[Record], drops: DropReport) -> dict[str, Any]:
    """Returns the figures of an evaluation, as JSON holds them.

    `metrics` maps a name to value, standard error and 95 % interval; the benchmark's own metric is first. A prompt that is
    too long counts as wrong; a question without a result (a server that failed) is left out and counted in `missing`.
    """
    counted = scores(records)
    metrics = _generation_metrics(records) if isinstance(benchmark, Generation) else _likelihood_metrics(records)
    first = metrics.pop(benchmark.metric)
    reasons = Counter(record["reason"] for record in records if record["reason"])
    return {
        "benchmark": benchmark.name,
        "metric": benchmark.metric,
        "metrics": {benchmark.metric: _plain(first), **{name: _plain(value) for name, value in metrics.items()}},
        "questions": len(counted),
        "samples": sum(map(len, counted.values())),
        "missing": reasons.pop("no result", 0),
        "too_long": reasons.pop("prompt too long", 0),
        **(_lengths(records) if isinstance(benchmark, Generation) else {}),
        "reasons": dict(reasons.most_common(20)),
        "data": drops.source,
        "dropped_rows": {reason: str(tally) for reason, tally in drops.dropped.items()},
    }


def _generation_metrics(records: Sequence[Record]) -> dict[str, Estimate]:
    grouped = list(scores(records).values())
    metrics = {"pass@1": pass_at_1(grouped)}
    # A prompt that is too long has one record, and would have failed as often as the others were sampled.
    samples = max(map(len, grouped), default=0)
    full = [question if len(question) == samples else question * samples for question in grouped]
    k = 2
    while k <= samples:
        metrics[f"pass@{k}"] = mean_pass_at_k(full, k)
        k *= 2
    if samples > 1:
        votes: dict[str, list[Record]] = {}
        for record in records:
            if record["reason"] != "no result":
                votes.setdefault(record["id"], []).append(record)
        right = [
            majority_is_right([r.get("extracted") for r in group], [r["correct"] for r in group])
            for group in votes.values()
        ]
        metrics[f"maj@{samples}"] = pass_at_1([[float(value)] for value in right])
    return metrics


def _likelihood_metrics(records: Sequence[Record]) -> dict[str, Estimate]:
    return {
        name: pass_at_1(list(scores(records, field).values()))
        for name, field in (("acc", "correct"), ("acc_norm", "correct_norm"))
    }


def _lengths(records: Sequence[Record]) -> dict[str, Any]:
    """Returns the share of samples cut off, and tokens of a sample."""
    given = [record for record in records if record["output"] is not None]
    tokens = [record["tokens"] for record in given if record["tokens"]]
    return {
        "truncated": float(np.mean([record["finish_reason"] == "length" for record in given])) if given else None,
        "tokens_per_answer": float(np.mean(tokens)) if tokens else None,
    }


def _plain(estimate: Estimate) -> dict[str, float | list[float] | None]:
    if np.isnan(estimate.error):
        return {"value": None if np.isnan(estimate.value) else estimate.value, "error": None, "interval": None}
    return {"value": estimate.value, "error": estimate.error, "interval": list(estimate.interval())}


def show(results: dict[str, Any], model: str) -> None:
    """Prints the table, and what a reader must know besides."""
    console = Console()
    table = Table(title=f"{results['benchmark']} · {model}")
    for column in ("metric", "value", "standard error", "95 % interval"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, metric in results["metrics"].items():
        interval = "–" if metric["interval"] is None else f"{metric['interval'][0]:.3f} … {metric['interval'][1]:.3f}"
        value, error = (f"{metric[key]:.4f}" if metric[key] is not None else "–" for key in ("value", "error"))
        table.add_row(name, value, error, interval)
    console.print(table)
    if "trust" in results:
        console.print(report.table(results["trust"]))
    lines = [f"{results['questions']} questions, {results['samples']} samples, from {results['data']}"]
    if results.get("truncated") is not None:
        tokens = f"{results['tokens_per_answer']:.1f}" if results["tokens_per_answer"] else "unknown"
        lines.append(f"truncated at the limit of tokens: {results['truncated']:.1%}; tokens an answer: {tokens}")
    if results["too_long"]:
        lines.append(f"prompts longer than the context, counted as wrong: {results['too_long']}")
    if results["missing"]:
        lines.append(f"WITHOUT A RESULT, LEFT OUT: {results['missing']}; run the same command again to ask them")
    lines += report.remarks(results["trust"]) if "trust" in results else []
    lines += [f"rows left out, {reason}: {tally}" for reason, tally in results["dropped_rows"].items()]
    lines += [f"wrong, {reason}: {count}" for reason, count in list(results["reasons"].items())[:5]]
    for name, section in (("cost", cost), ("agreement", agreement), ("difficulty", by_difficulty)):
        lines += section.lines(results[name]) if name in results else []
    console.print("\n".join(lines), markup=False, highlight=False)
