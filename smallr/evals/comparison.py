"""Compares two evaluations of the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError
from smallr.core.files import FileError, read_json
from smallr.evals.records import Record, scores
from smallr.evals.statistics import Difference, paired_difference
from smallr.evals.store import read_samples
from smallr.evals.trust.by_difficulty import bin_names, gain_by_bin
from smallr.evals.trust.comparing import FigureDifference, differences
from smallr.evals.trust.report import title

FIELDS = {"acc_norm": "correct_norm"}  # of a record, by metric; all others are `correct`


@dataclass(frozen=True)
class Evaluated:
    """Holds a finished evaluation as it was read from its folder.

    Attributes:
      results: as `results.json` holds them.
      records: of each question, by its id.
      scores: of each question's samples in the benchmark's own metric.
    """

    results: dict[str, Any]
    records: dict[str, list[Record]]
    scores: dict[str, list[float]]


@dataclass(frozen=True)
class Comparison:
    """Compares two evaluations: all differences are B minus A.

    Attributes:
      benchmark, metric: what was compared.
      shared: questions that both have.
      only_a, only_b: questions that one has alone; they are left out.
      trust: what the confidences of both are worth; empty where one has none.
      measures: of these confidences.
      costs: of an answer of each, where its evaluation has it.
      by_bin: the difference in each bin of difficulty, if that was asked for.
    """

    benchmark: str
    metric: str
    models: tuple[str, str]
    difference: Difference
    shared: int
    only_a: int
    only_b: int
    costs: tuple[dict[str, Any] | None, dict[str, Any] | None]
    by_bin: dict[str, dict[str, Any]]
    trust: tuple[FigureDifference, ...] = ()
    measures: tuple[str, str] = ("", "")


def compare(
    a: Path, b: Path, *, shared_only: bool = False, confidence: float = 0.95, by_difficulty: bool = False
) -> Comparison:
    """Compares two finished evaluations on the questions they share.

    Args:
      a: folder of `smallr evaluate`.
      b: another.
      shared_only: leave out what only one has, instead of refusing.
      confidence: of the interval.
      by_difficulty: report the difference in each bin of difficulty too.

    Raises:
      UserError: no results, different benchmarks, different questions, another prompt for the same question, no bins.
    """
    both = [read_evaluation(folder) for folder in (a, b)]
    results, records, known = ([getattr(each, name) for each in both] for name in ("results", "records", "scores"))
    names = [result["benchmark"] for result in results]
    if names[0] != names[1]:
        raise UserError(f"{a} is of {names[0]}, {b} of {names[1]}: only evaluations of one benchmark are compared")
    shared = [name for name in known[0] if name in known[1]]
    only = [len(each) - len(shared) for each in known]
    if not shared or (any(only) and not shared_only):
        raise UserError(
            f"{a} and {b} share {len(shared)} questions; {only[0]} are only in the first and {only[1]} only in the second"
            + (". Compare the shared ones with --shared" if shared else "")
        )
    changed = [name for name in shared if records[0][name][0]["gold"] != records[1][name][0]["gold"]]
    if changed:
        raise UserError(
            f"question {changed[0]!r} has another right answer in {b} than in {a}: other data of the same name"
        )
    difference = paired_difference(*([each[name] for name in shared] for each in known), confidence=confidence)
    models = (results[0]["model"], results[1]["model"])
    samples = [[record for group in each.values() for record in group] for each in records]
    metric = results[0]["metric"]
    trust = differences(*samples, FIELDS.get(metric, "correct"), shared, confidence=confidence)
    measures = tuple(title(result["trust"]) if "trust" in result else "" for result in results)
    costs = (results[0].get("cost"), results[1].get("cost"))
    bins = _by_bin(both, (a, b)) if by_difficulty else {}
    return Comparison(names[0], metric, models, difference, len(shared), *only, costs, bins, tuple(trust), measures)


def _by_bin(both: Sequence[Evaluated], folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Returns the difference in each bin of the first of two evaluations that has bins."""
    for each in both:
        if "difficulty" in each.results:
            records = [record for group in each.records.values() for record in group]
            return gain_by_bin(records, both[1].scores, both[0].scores, order=bin_names(each.results["difficulty"]))
    raise UserError(
        f"neither {folders[0]} nor {folders[1]} has bins of difficulty: evaluate one again with "
        "--config.difficulty.measure=…, which asks the model nothing that was asked before"
    )


def read_evaluation(folder: Path) -> Evaluated:
    """Reads a finished evaluation.

    Raises:
      UserError: there is none, or a file is damaged.
    """
    results = _results(folder)
    field = FIELDS.get(results["metric"], "correct")
    samples = read_samples(folder, field)
    return Evaluated(results, _by_question(samples), scores(samples, field))


def _results(folder: Path) -> dict:
    path = folder / "results.json"
    try:
        return read_json(path, fields={"benchmark": str, "metric": str, "model": str})
    except FileError as error:
        raise UserError(f"{error}: give folders of finished evaluations (smallr evaluate)") from error


def _by_question(samples: list[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for sample in samples:
        sample.setdefault("gold", None)
        found.setdefault(sample["id"], []).append(sample)
    return found
