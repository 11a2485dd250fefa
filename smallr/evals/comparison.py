"""Compares two evaluations of the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smallr.core.errors import UserError
from smallr.core.files import FileError, read_json
from smallr.evals.records import Record, scores
from smallr.evals.statistics import Difference, paired_difference
from smallr.evals.store import read_samples
from smallr.evals.trust.comparing import FigureDifference, differences
from smallr.evals.trust.report import title

FIELDS = {"acc_norm": "correct_norm"}  # of a record, by metric; all others are `correct`


@dataclass(frozen=True)
class Comparison:
    """Compares two evaluations: all differences are B minus A.

    Attributes:
      benchmark, metric: what was compared.
      shared: questions that both have.
      only_a, only_b: questions that one has alone; they are left out.
      trust: what the confidences of both are worth; empty where one has none.
      measures: of these confidences.
    """

    benchmark: str
    metric: str
    models: tuple[str, str]
    difference: Difference
    shared: int
    only_a: int
    only_b: int
    trust: tuple[FigureDifference, ...] = ()
    measures: tuple[str, str] = ("", "")


def compare(a: Path, b: Path, *, shared_only: bool = False, confidence: float = 0.95) -> Comparison:
    """Compares two finished evaluations on the questions they share.

    Args:
      a: folder of `smallr evaluate`.
      b: another.
      shared_only: leave out what only one has, instead of refusing.
      confidence: of the interval.

    Raises:
      UserError: no results, different benchmarks, different questions, another prompt for the same question.
    """
    results = [_results(folder) for folder in (a, b)]
    names = [result["benchmark"] for result in results]
    if names[0] != names[1]:
        raise UserError(f"{a} is of {names[0]}, {b} of {names[1]}: only evaluations of one benchmark are compared")
    metric = results[0]["metric"]
    field = FIELDS.get(metric, "correct")
    records = [_by_question(read_samples(folder, field)) for folder in (a, b)]
    known = [scores([r for group in each.values() for r in group], field) for each in records]
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
    trust = differences(*samples, field, shared, confidence=confidence)
    measures = tuple(title(result["trust"]) if "trust" in result else "" for result in results)
    return Comparison(names[0], metric, models, difference, len(shared), *only, tuple(trust), measures)


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
