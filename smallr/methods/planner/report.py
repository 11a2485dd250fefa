"""Writes what a benchmark came to: report.json, report.md for people, plots where matplotlib is installed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.core.files import whole_file, write_json, write_text
from smallr.methods.planner.evaluation import VOTE, evaluate
from smallr.methods.planner.instances import agreement, with_all_instances
from smallr.methods.planner.sql.gold import gold_report, write_gold

_SHOWN = 20  # questions listed by name
_FIGURES = ("pair acc %", "macro F1 %", "Hit@1 %", "MRR %")  # each with an interval
_JUDGED = ("discriminator", *(name for figure in _FIGURES for name in (figure, "95 %")), "fail %")


def write_report(
    folder: Path,
    config: ConfigDict,
    executed: Sequence[Mapping[str, Any]],
    instances: Sequence[Sequence[Mapping[str, Any]]],
    exact: Mapping[str, Any],
    gold_joins: Sequence[Mapping[str, Any]],
    judgements: Mapping[str, Sequence[Mapping[str, Any]]],
    searches: Mapping[str, Sequence[Mapping[str, Any]]],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Writes the files and returns what is in report.json.

    Args:
      folder: of the run.
      config: of the run.
      executed: value of the stage, as all that follow.
      instances: executed on each further instance.
      exact: counts of exact matches; empty for a task that has none.
      gold_joins: suspicious joins of gold queries; empty for a task that has none.
      judgements: by the name of the discriminator.
      searches: by the name of the search.
      seconds: that stages took.
    """
    settings = json.loads(json.dumps(config.to_dict()))
    report = {**evaluate(settings, executed, judgements, searches), "seconds": dict(seconds), "config": settings}
    report["exact"] = dict(exact)
    if instances:
        every = evaluate(settings, with_all_instances(executed, instances), judgements, {})
        report["instances"] = {**agreement(executed, instances), "picks": every["picks"]}
    if gold_joins:
        report["gold"] = gold_report(executed, instances, gold_joins)
        write_gold(folder / "gold.md", report["gold"])
    report["cost"] = _cost(config, report)
    report["plot"] = plot_picks(folder / "picks.png", report["picks"])
    report["oracle_plot"] = plot_oracle(folder / "oracle.png", report["picks"])
    write_json(folder / "report.json", _finite(report))
    write_text(folder / "report.md", markdown(report))
    return report


def markdown(report: Mapping[str, Any]) -> str:
    """Writes the report for people."""
    counts = report["counts"]
    lines = [
        "# Planning",
        "",
        f"{counts['questions']} questions, {counts['judged_questions']} of them with candidates and a gold plan that runs; "
        f"{counts['candidates']} candidates, {counts['correct']} correct, {counts['executable']} executable; "
        f"{counts['mixed_questions']} questions have both right and wrong ones. A candidate is right in "
        f"{100 * report['mean_candidate']:.1f} % of the cases, on the mean over questions.",
        "",
        *_table(
            ("pick", "EX %", "95 %", f"minus {VOTE}", "95 %", "better/worse", "p"),
            (_pick_line(name, each) for name, each in report["picks"].items()),
        ),
    ]
    lines += _judged(report)
    if report["searches"]:
        rows = [
            (name, *(f"{each[key]:.1f}" for key in ("proposals", "judged", "expansions")))
            for name, each in report["searches"].items()
        ]
        lines += ["", *_table(("search", "proposals", "judged", "expansions"), rows)]
    lines += _instances(report)
    if report["exact"]:
        found = report["exact"]
        parts = ", ".join(
            f"{name} {_percent(count / max(found['parsed'], 1))}" for name, count in found["parts"].items()
        )
        lines += [
            "",
            f"Exact match with the gold query, part by part: {found['exact']} of {found['parsed']} candidates that can be "
            f"parsed, {found['exact_wrong']} of them with another result. The same part, in %: {parts}.",
        ]
    lines += _gold(report)
    if counts["errors"]:
        errors = ", ".join(f"{number} {kind}" for kind, number in counts["errors"].items())
        lines += ["", f"Candidates that do not execute: {errors}."]
    if report["unusable"]:
        listed = ", ".join(report["unusable"][:_SHOWN])
        more = ", …" if len(report["unusable"]) > _SHOWN else ""
        lines += ["", f"Left out, without a candidate or with a gold plan that fails or is unknown: {listed}{more}"]
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in report["seconds"].items())
    lines += ["", f"Time: {spent}. Cost: {report['cost']:.4f}.", ""]
    return "\n".join(lines)


def _judged(report: Mapping[str, Any]) -> list[str]:
    """Writes how well discriminators tell right from wrong, what they wrote, and how they differ."""
    lines: list[str] = []
    if report["intrinsic"]:
        lines += ["", *_table((*_JUDGED, "tokens"), (_intrinsic_line(*each) for each in report["intrinsic"].items()))]
        rows = [_text_line(*each) for each in report["intrinsic"].items() if each[1]["text"]["words"] > 0]
        header = ("rationales", "words", "repetition %", "1 - TTR %", "pairs of words repeated %", "entropy, bits")
        lines += ["", *_table(header, rows)] if rows else []
    if report["between"]:
        header = ("between discriminators", "EX", "95 %", "better/worse", "p", "pair acc", "95 %")
        lines += ["", *_table(header, (_between_line(*each) for each in report["between"].items()))]
    if report["budgets"]:
        header = ("budget", *_JUDGED, "EX %", f"minus {VOTE}", "95 %", "p")
        rows = [_budget_line(*each) for each in _by_budget(report["budgets"])]
        lines += ["", *_table(header, rows)]
    return lines


def _gold(report: Mapping[str, Any]) -> list[str]:
    """Says how many gold queries are suspicious, and where they are listed."""
    if not report.get("gold"):
        return []
    kinds = Counter(kind for row in report["gold"] for kind in {_kind(reason) for reason in row["reasons"]})
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    return ["", f"Gold queries to look at, listed in gold.md: {len(report['gold'])} ({counted})."]


def _kind(reason: str) -> str:
    for mark, kind in (
        ("no foreign key", "join what no foreign key connects"),
        ("no value in common", "join what has no value in common"),
        ("fails", "fail"),
    ):
        if mark in reason:
            return kind
    return "return nothing"


def _instances(report: Mapping[str, Any]) -> list[str]:
    """Writes what further instances of the databases say."""
    if "instances" not in report:
        return []
    found = report["instances"]
    lines = [
        "",
        f"On {found['instances']} further instances of each database {found['lost']} of {found['right_on_one']} candidates "
        f"that are right on the given one are wrong at least once, of {len(found['questions_with_lost'])} questions. The gold "
        f"query of {len(found['gold_empty_everywhere'])} questions is empty on all: "
        f"{', '.join(found['gold_empty_everywhere'][:_SHOWN]) or 'none'}.",
        "",
    ]
    rows = (_pick_line(name, each) for name, each in found["picks"].items())
    return [
        *lines,
        *_table(("pick, all instances", "EX %", "95 %", f"minus {VOTE}", "95 %", "better/worse", "p"), rows),
    ]


def _pick_line(name: str, each: Mapping[str, Any]) -> tuple[str, ...]:
    difference = (f"{100 * each['difference']:+.1f}", _interval(each["difference_low"], each["difference_high"]))
    counts = (f"{each['better']}/{each['worse']}", f"{each['p_value']:.3g}")
    return (name, _percent(each["ex"]), _interval(each["low"], each["high"]), *difference, *counts)


def _intrinsic_line(name: str, each: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        _percent(each["pairwise_accuracy"]),
        _interval(*each["pairwise_interval"]),
        _percent(each["macro_f1"]),
        _interval(*each["macro_f1_interval"]),
        _percent(each["hit_at_1"]),
        _interval(*each["hit_interval"]),
        _percent(each["mrr"]),
        _interval(*each["mrr_interval"]),
        _percent(each["fail_rate"]),
        f"{each['prompt_tokens']} + {each['tokens']}",
    )


def _between_line(name: str, each: Mapping[str, Any]) -> tuple[str, ...]:
    gap, low, high = each["pairs"]
    pairs = ("–", "–") if math.isnan(gap) else (f"{100 * gap:+.1f}", _interval(low, high))
    return (name, *_pick_line("", each)[3:], *pairs)


def _text_line(name: str, each: Mapping[str, Any]) -> tuple[str, ...]:
    text = each["text"]
    shares = (_percent(text[key]) for key in ("repetition", "one_minus_ttr", "repetition_2"))
    return (name, f"{text['words']:.0f}", *shares, f"{text['entropy']:.2f}")


def _by_budget(budgets: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for budget, variants in budgets.items():
        yield from ((budget, name, each) for name, each in variants.items())


def _budget_line(budget: str, name: str, each: Mapping[str, Any]) -> tuple[str, ...]:
    _, ex, _, difference, interval, _, p_value = _pick_line(name, each["pick"])
    return (budget, *_intrinsic_line(name, each)[:-1], ex, difference, interval, p_value)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _interval(low: float, high: float) -> str:
    return f"{_percent(low)} to {_percent(high)}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _cost(config: ConfigDict, report: Mapping[str, Any]) -> float:
    """Returns what the judgements cost at the discriminator's prices; modes with one prompt share theirs."""
    prices = config.discriminator.prices
    costs: dict[str, float] = {}
    for name, each in report["intrinsic"].items():
        kind, mode, _ = name.split()
        cost = (each["prompt_tokens"] * prices.prompt + each["tokens"] * prices.completion) / 1e6
        shared = f"{kind} {mode in ('exec', 'pro')}"
        costs[shared] = max(cost, costs.get(shared, 0.0))
    return sum(costs.values())


def _finite(value: Any) -> Any:
    """Returns a value with None for what is not a number, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plot_picks(path: Path, picks: Mapping[str, Mapping[str, float]]) -> bool:
    """Draws the execution match of all picks with intervals; says whether it did (it needs matplotlib and picks)."""
    shown = {name: each for name, each in picks.items() if "_oracle_" not in name}
    figure = _figure() if shown else None
    if figure is None:
        return False
    axes = figure.add_subplot()
    values = [each["ex"] for each in shown.values()]
    # An interval's end may be off by a rounding error where all are right.
    below = [max(each["ex"] - each["low"], 0.0) for each in shown.values()]
    above = [max(each["high"] - each["ex"], 0.0) for each in shown.values()]
    axes.barh(list(shown), values, xerr=[below, above], color="#7a9cc6")
    axes.invert_yaxis()
    axes.set_xlabel("execution match")
    axes.set_xlim(max(0.0, min(values) - 0.15), 1.0)
    return _save(figure, path)


def plot_oracle(path: Path, picks: Mapping[str, Mapping[str, float]]) -> bool:
    """Draws execution match over the oracle's accuracy, a line a planner; says whether it did."""
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for name, each in picks.items():
        planner, mark, accuracy = name.partition("_oracle_")
        if mark:
            curves.setdefault(planner, []).append((float(accuracy), each["ex"], each["low"], each["high"]))
    figure = _figure() if curves else None
    if figure is None:
        return False
    axes = figure.add_subplot()
    for planner, points in curves.items():
        x, y, low, high = zip(*sorted(points), strict=True)
        axes.plot(x, y, marker="o", label=planner)
        axes.fill_between(x, low, high, alpha=0.15)
    axes.axhline(picks[VOTE]["ex"], color="black", linestyle="--", label=VOTE)
    axes.set_xlabel("accuracy of the oracle")
    axes.set_ylabel("execution match")
    axes.legend()
    return _save(figure, path)


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure  # an extra, and a second
    except ImportError:
        return None
    return Figure(figsize=(8, 4.5), layout="constrained")


def _save(figure: Any, path: Path) -> bool:
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    return True
