"""Adds to an evaluation what its config asks for: agreement, cost, difficulty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.core.journal import Journal
from smallr.evals import models
from smallr.evals.benchmarks.base import Benchmark, Generation
from smallr.evals.comparison import FIELDS, Evaluated, read_evaluation
from smallr.evals.graders.base import Grader
from smallr.evals.questions import Item
from smallr.evals.records import Record
from smallr.evals.running import Asked
from smallr.evals.trust import agreement, by_difficulty, difficulty
from smallr.evals.trust.cost import cost
from smallr.evals.trust.parts import Parts, split
from smallr.evals.trust.reading import add_agreement
from smallr.language.base import LanguageModel, Prices


def check(benchmark: Benchmark, items: Sequence[Item], config: ConfigDict) -> Evaluated | None:
    """Refuses what would fail late, before the model is opened; returns the evaluation over which gains are reported.

    Raises:
      UserError: names the field.
    """
    if isinstance(benchmark, Generation) and config.agreement.order:
        agreement.check(config.agreement, runs_code=benchmark.runs_code)
    fields = config.difficulty
    if not fields.measure:
        if fields.baseline:
            raise UserError(
                "config.difficulty.baseline: gains are reported by difficulty; set config.difficulty.measure"
            )
        return None
    difficulty.check(fields.measure, items, benchmark.name, fields.column, fields.base)
    if fields.bins < 1:
        raise UserError(f"config.difficulty.bins = {fields.bins} must be at least 1")
    if not fields.baseline:
        return None
    baseline = read_evaluation(Path(fields.baseline))
    if baseline.results["benchmark"] != benchmark.name:
        raise UserError(
            f"config.difficulty.baseline: {fields.baseline} is of {baseline.results['benchmark']}, not {benchmark.name}"
        )
    return baseline


def splitter(config: ConfigDict) -> Callable[[str], Parts] | None:
    """Returns what splits an output, of which the answer alone is graded; None where no order is given."""
    order, separator = config.agreement.order, config.agreement.separator
    return (lambda text: split(text, order, separator)) if order else None


def answered(
    records: Sequence[Record],
    items: Sequence[Item],
    config: ConfigDict,
    grader: Grader,
    model: LanguageModel,
    asked: Asked,
    journal: Journal,
) -> dict[str, Any]:
    """Returns cost and, where it is asked for, agreement, which is written into the records too."""
    entries = journal.entries()
    seconds = [entry.get("seconds") for entry in entries.values() if "prompt_tokens" in entry]
    fields = config.cost
    size = getattr(model, "weight_bytes", fields.model_bytes)  # a local model knows it
    figures = {"cost": cost(records, seconds, size, Prices(**fields.prices), fields.per_hour)}
    if config.agreement.order:
        by_id = {item.id: item for item in items}
        add_agreement(records, by_id, config.agreement, grader, model, asked, journal)
        figures["agreement"] = agreement.report(records, config.agreement.order, config.agreement.reader)
    return figures


def binned(
    benchmark: Benchmark,
    items: Sequence[Item],
    records: Sequence[Record],
    config: ConfigDict,
    baseline: Evaluated | None,
    folder: Path,
) -> dict[str, Any]:
    """Returns the figures by difficulty, where they are asked for; writes bins into the records, and the plot."""
    fields = config.difficulty
    if not fields.measure:
        return {}
    scorer = None
    if fields.measure == "nll":
        compute = config.compute
        scorer = models.open_scorer(fields.base, dtype=compute.dtype, max_length=compute.max_length or None)
    values = difficulty.measured(fields.measure, items, fields.column, scorer)
    bins = difficulty.make_bins(values, fields.bins, fields.edges, each=fields.measure == "level")
    for record in records:
        if record["id"] in values:
            record["difficulty"] = values[record["id"]]
    found = by_difficulty.report(
        records,
        bins,
        fields.measure,
        field=FIELDS.get(benchmark.metric, "correct"),
        baseline=baseline.scores if baseline else None,
        baseline_model=baseline.results["model"] if baseline else "",
    )
    by_difficulty.plot(found, folder / by_difficulty.PLOT)
    return {"difficulty": found}
