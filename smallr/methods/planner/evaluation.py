"""Evaluates a benchmark: execution match of every way to pick, and how well discriminators tell right from wrong."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from smallr.evals.statistics import paired_difference, pass_at_1
from smallr.methods.planner import metrics
from smallr.methods.planner.baselines import BASELINES
from smallr.methods.planner.discriminators.base import MODES, Judgement, scores, within
from smallr.methods.planner.planners import best
from smallr.methods.planner.rows import Executed, of_rows

VOTE = "majority of proposals"  # what every pick is compared with

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to score: a kind of discriminator, a mode and a rule."""

    kind: str
    mode: str
    rule: str

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return f"{self.kind} {self.mode} {self.rule}"

    @property
    def judgements(self) -> str:
        """Which judgements it scores."""
        return f"{self.kind}_results" if MODES[self.mode][1] else self.kind


def variants(config: Mapping[str, Any]) -> list[Variant]:
    """Returns all ways to score of a run; one word of yes or no has no hard rule."""
    fields = config["discriminator"]
    return [
        Variant(kind, mode, rule)
        for kind in (fields["kinds"] if fields["model"] else ())
        for mode in fields["modes"]
        for rule in (fields["rules"] if kind == "reasoning" else ("soft",))
    ]


def evaluate(
    config: Mapping[str, Any], executed: Rows, judgements: Mapping[str, Rows], searches: Mapping[str, Rows]
) -> dict[str, Any]:
    """Returns all figures of a run, in JSON's types.

    Problems whose gold plan is unknown or fails are left out of every figure, and listed.
    """
    candidates = of_rows(executed)
    judged = [index for index, found in enumerate(candidates) if found and found[0].correct is not None]
    kept = [candidates[index] for index in judged]
    ids = [executed[index]["id"] for index in judged]
    scored = {
        variant.name: _scores(variant, kept, [judgements[variant.judgements][index] for index in judged])
        for variant in variants(config)
    }
    found = {name: [pick(each) for each in kept] for name, pick in BASELINES.items()}
    found |= {
        f"rerank, {name}": [best([each.plan for each in rows], values) for rows, values in zip(kept, per, strict=True)]
        for name, per in scored.items()
        if "rerank" in config["planners"]
    }
    correct = {
        name: [pick is not None and bool(rows[pick].correct) for rows, pick in zip(kept, picks, strict=True)]
        for name, picks in found.items()
    }
    correct |= {name: [bool(rows[index]["correct"]) for index in judged] for name, rows in searches.items()}
    correct["any of the candidates right"] = [any(each.correct for each in rows) for rows in kept]
    intrinsic = {
        variant.name: _intrinsic(variant, kept, scored[variant.name], judgements[variant.judgements], judged)
        for variant in variants(config)
        if kept
    }
    pairs = {name: each["pairs"] for name, each in intrinsic.items()}
    return {
        "counts": _counts(candidates, kept),
        "unusable": [row["id"] for row in executed if row["id"] not in set(ids)],
        "picks": {name: pick_figures(values, correct[VOTE]) for name, values in correct.items()} if kept else {},
        "mean_candidate": float(np.mean([np.mean([bool(each.correct) for each in rows]) for rows in kept]))
        if kept
        else math.nan,
        "intrinsic": intrinsic,
        "between": between(variants(config), correct, pairs) if kept else {},
        "budgets": _budgets(config, executed, judgements) if kept else {},
        "searches": {name: _costs(rows) for name, rows in searches.items()},
        "chosen": {"ids": ids, "correct": correct},
    }


def between(
    every: Sequence[Variant], correct: Mapping[str, Sequence[bool]], pairs: Mapping[str, Sequence[tuple[int, int]]]
) -> dict[str, dict[str, Any]]:
    """Compares ways to score that differ in one respect, the kind, the mode or the rule, question by question.

    Args:
      every: the ways.
      correct: by the name of a pick, whether it is right.
      pairs: by the name of a way, its `metrics.pair_counts`.
    """
    found = {}
    for one, other in itertools.combinations(every, 2):
        names = [f"rerank, {each.name}" for each in (one, other)]
        changed = sum(a != b for a, b in zip(dataclasses.astuple(one), dataclasses.astuple(other), strict=True))
        if changed == 1 and all(name in correct for name in names):
            gap = metrics.pairwise_gap(pairs[other.name], pairs[one.name])
            figures = pick_figures(correct[names[1]], correct[names[0]])
            found[f"{other.name} minus {one.name}"] = {**figures, "pairs": gap}
    return found


def _budgets(config: Mapping[str, Any], executed: Rows, judgements: Mapping[str, Rows]) -> dict[str, dict[str, Any]]:
    """Returns, for each smaller budget of reasoning, the figures of each way to score: as if answers had ended there."""
    found: dict[str, dict[str, Any]] = {}
    fields = {**config["discriminator"], "kinds": ("reasoning",), "budgets": ()}
    reasoned = {name: rows for name, rows in judgements.items() if name.startswith("reasoning")}
    for budget in config["discriminator"]["budgets"] if reasoned else ():
        cut = {name: [_cut(row, budget) for row in rows] for name, rows in reasoned.items()}
        settings = {**config, "discriminator": fields, "planners": ("rerank",)}
        report = evaluate(settings, executed, cut, {})
        found[str(budget)] = {
            name: {**each, "pick": report["picks"][f"rerank, {name}"]} for name, each in report["intrinsic"].items()
        }
    return found


def _cut(row: Mapping[str, Any], budget: int) -> dict[str, Any]:
    judgements = [dataclasses.asdict(within(Judgement(**each), budget)) for each in row["judgements"]]
    return {**row, "judgements": judgements}


def pick_figures(correct: Sequence[bool], vote: Sequence[bool]) -> dict[str, float]:
    """Returns execution match with its 95 % interval, and the difference from the vote with McNemar's exact test."""
    estimate = pass_at_1([[float(value)] for value in correct])
    low, high = estimate.interval()
    gap = paired_difference([[float(v)] for v in vote], [[float(v)] for v in correct], resamples=metrics.RESAMPLES)
    return {
        "ex": estimate.value,
        "low": low,
        "high": high,
        "difference": gap.difference,
        "difference_low": gap.low,
        "difference_high": gap.high,
        "better": gap.better,
        "worse": gap.worse,
        "p_value": gap.p_value,
    }


def _scores(variant: Variant, kept: Sequence[Sequence[Executed]], rows: Rows) -> list[list[float]]:
    return [
        scores(
            [Judgement(**each) for each in row["judgements"]],
            [each.outcome for each in found],
            variant.mode,
            variant.rule,
        )
        for found, row in zip(kept, rows, strict=True)
    ]


def _intrinsic(
    variant: Variant,
    kept: Sequence[Sequence[Executed]],
    values: Sequence[Sequence[float]],
    rows: Rows,
    judged: Sequence[int],
) -> dict[str, Any]:
    labels = [[bool(each.correct) for each in found] for found in kept]
    ranks = metrics.reciprocal_ranks(labels, values)
    checks, _ = MODES[variant.mode]
    sent = [
        Judgement(**each)
        for index, found in zip(judged, kept, strict=True)
        for each, candidate in zip(rows[index]["judgements"], found, strict=True)
        if not (checks and candidate.error)
    ]
    hit = pass_at_1([[float(rank == 1.0)] for rank in ranks])
    pairs = metrics.pair_counts(labels, values)
    return {
        "pairwise_accuracy": metrics.pairwise_accuracy(labels, values),
        "pairwise_interval": metrics.pairwise_interval(pairs),
        "pairs": pairs,
        "macro_f1": metrics.macro_f1(labels, values),
        "macro_f1_interval": metrics.macro_f1_interval(labels, values),
        "hit_at_1": hit.value,
        "hit_interval": hit.interval(),
        "mrr": float(np.mean(ranks)),
        "mrr_interval": metrics.mean_interval(ranks),
        "fail_rate": float(np.mean([each.correct is None for each in sent])) if sent else math.nan,
        "asked": len(sent),
        "prompt_tokens": sum(each.prompt_tokens for each in sent),
        "tokens": sum(each.tokens for each in sent),
        "text": metrics.text_statistics([each.text for each in sent if each.text]),
    }


def _counts(candidates: Sequence[Sequence[Executed]], kept: Sequence[Sequence[Executed]]) -> dict[str, Any]:
    every = [each for found in candidates for each in found]
    labels = [{bool(each.correct) for each in found} for found in kept]
    return {
        "questions": len(candidates),
        "judged_questions": len(kept),
        "candidates": len(every),
        "correct": sum(each.correct is True for each in every),
        "executable": sum(not each.error for each in every),
        "mixed_questions": sum(len(found) == 2 for found in labels),
        "errors": dict(Counter(each.kind for each in every if each.error).most_common()),
    }


def _costs(rows: Rows) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in ("proposals", "judged", "expansions")}
