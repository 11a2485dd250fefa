"""Compare two evaluations: smallr compare A B [--shared] [--confidence=0.95] [--by_difficulty]

A and B are folders of `smallr evaluate` on one benchmark. The difference is B minus A, question by question, with a
bootstrap interval and the p-value of McNemar's exact test. Below stands what an answer of each costs. Where both have
confidences (--config.confidence.measure of smallr evaluate), a table says whether they differ in calibration and in risk
against coverage.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallr.cli.parsing import Parser

if TYPE_CHECKING:
    from smallr.evals.comparison import Comparison


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.argument("a", "folder of an evaluation")
    parser.argument("b", "folder of another")
    parser.flag("shared", False, "leave out questions that only one of the two has")
    parser.flag("by_difficulty", False, "show the difference in each bin of config.difficulty too")
    parser.flag("confidence", 0.95, "of the interval", low=0.5, high=0.9999)


def run(options: Namespace) -> None:
    """Prints the comparison."""
    from smallr.evals.comparison import compare
    from smallr.evals.trust.by_difficulty import shown

    found = compare(
        Path(options.a),
        Path(options.b),
        shared_only=options.shared,
        confidence=options.confidence,
        by_difficulty=options.by_difficulty,
    )
    d = found.difference
    left_out = f"; left out: {found.only_a} only in A, {found.only_b} only in B" if found.only_a or found.only_b else ""
    print(f"{found.benchmark}, {found.metric}, {found.shared} questions{left_out}")
    print(f"  A  {d.mean_a:.4f}  {found.models[0]}  {options.a}")
    print(f"  B  {d.mean_b:.4f}  {found.models[1]}  {options.b}")
    print(f"  B - A  {d.difference:+.4f}, {options.confidence:.0%} interval {d.low:+.4f} … {d.high:+.4f}")
    print(
        f"  B better on {d.better}, worse on {d.worse}, equal on {d.questions - d.better - d.worse}; p = {d.p_value:.3g}"
    )
    for name, gain in found.by_bin.items():
        print(f"  {name}: {gain['questions']} questions, B - A {shown(gain)}, p = {gain['p_value']:.3g}")
    if found.trust:
        show_trust(found)
    if None not in found.costs:
        show_costs(found.costs)


def show_trust(found: Comparison) -> None:
    """Prints the figures of confidence, with the interval of each difference."""
    print(f"confidence, A: {found.measures[0]}\n            B: {found.measures[1]}")
    print(f"  {'':12}{'A':>8}{'B':>8}{'B - A':>9}   interval")
    for each in found.trust:
        verdict = "differ" if each.differs else "no difference shown"
        print(
            f"  {each.name:12}{each.a:8.4f}{each.b:8.4f}{each.b - each.a:+9.4f}   {each.low:+.4f} … {each.high:+.4f}"
            f"   {verdict} (p = {each.p_value:.2g})"
        )


def show_costs(costs: Sequence[Mapping[str, Any]]) -> None:
    """Prints what an answer of each model costs, and how many times A's cost B's is."""
    from rich.console import Console
    from rich.table import Table

    from smallr.evals.trust.cost import COLUMNS, cells, ratios

    table = Table(title="cost of an answer")
    for title in ("", *(title for title, _ in COLUMNS.values())):
        table.add_column(title, justify="right" if title else "left")
    for name, line in (("A", cells(costs[0])), ("B", cells(costs[1])), ("B / A", ratios(*costs))):
        table.add_row(name, *line)
    Console().print(table)
