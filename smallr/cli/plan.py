"""Plan: have a generator propose queries, a discriminator score them, and a planner pick one.

  smallr plan --db=my.sqlite --question="How many …?" --generator=MODEL [--discriminator=MODEL]    one question
  smallr plan spider --config.data.source=FILE --config.data.databases=FOLDER --out=FOLDER         a benchmark

Databases are only read, by processes that are killed when they take too long. The first form prints the candidates,
their checks and scores, the pick and its rows; without a discriminator the majority of the results decides. The second
form runs as stages and goes on where it was killed: docs/methods/planner.md.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from smallr.cli.parsing import Parser, UsageError

_SHOWN = 20  # rows of the pick


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.config("planner", default="database")
    parser.flag("db", None, "a SQLite file")
    parser.flag("question", None, "in words, about the database")
    parser.flag("generator", "", "any language model, who proposes queries")
    parser.flag("candidate", [], "a query in place of a generator; may be given several times", many=True)
    parser.flag("discriminator", "", "any language model, who judges; yes_no and reward need a local one")
    parser.flag("kind", "", "how it judges: yes_no | reasoning | reward; empty: the config's")
    parser.flag("mode", "", "naive | check | exec | pro; empty: the config's")
    parser.flag("planner", "rerank", "greedy | rerank | iterative | tree")
    parser.flag("json", False, "print the trace as JSON")
    parser.flag("out", None, "folder of a benchmark")


def run(options: Namespace) -> None:
    """Plans for one question, or runs a benchmark."""
    config = options.config
    if options.generator:
        config.generator.model = options.generator
    if options.discriminator:
        config.discriminator.model = options.discriminator
    if options.kind:
        config.discriminator.kinds = (options.kind,)
    if options.mode:
        config.discriminator.modes = (options.mode,)
    if options.db or options.question:
        if options.out:
            raise UsageError(
                "plan: --out is the folder of a benchmark; of one question --json prints all that is known"
            )
        _one(options)
    elif not options.out:
        raise UsageError("plan: give --db and --question for one question, or a config and --out for a benchmark")
    else:
        from smallr.core.programs import keep_programs
        from smallr.methods.planner.pipeline import run_planner

        keep_programs()
        run_planner(config, Path(options.out))
        print((Path(options.out) / "report.md").read_text(encoding="utf-8"))


def _one(options: Namespace) -> None:
    import json

    from smallr.core.programs import keep_programs
    from smallr.methods.planner.ask import plan_for_question
    from smallr.methods.planner.planners import PLANNERS

    if not (options.db and options.question):
        raise UsageError(f"plan: --{'question' if options.db else 'db'} is missing: a question needs both")
    if options.planner not in PLANNERS:
        raise UsageError(f"plan: --planner={options.planner} must be one of: {', '.join(PLANNERS)}")
    keep_programs()
    trace = plan_for_question(
        options.config, Path(options.db), options.question, options.candidate, planner=options.planner
    )
    if options.json:
        print(json.dumps(trace))
    else:
        _show(trace)


def _show(trace: dict[str, Any]) -> None:
    """Prints a trace for people; what models and databases hold is shown as plain text."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console.print(Text(trace["question"], style="bold"))
    table = Table(title=f"candidates, {trace['discriminator'] or 'no discriminator'}", title_justify="left")
    for name in ("", "query", "votes", "result", "score"):
        table.add_column(name)
    for each in trace["candidates"]:
        result = f"fails: {each['error']}" if each["error"] else f"#{each['group'] + 1}{' (empty)' * each['empty']}"
        score = "" if each["score"] is None else f"{each['score']:.4f}"
        cells = ("→" if each["picked"] else "", each["plan"], str(each["votes"]), result, score)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)
    console.print(Text(f"picked by {trace['planner']}: {printable(trace['plan'] or 'nothing')}"))
    if trace["error"]:
        console.print(Text(f"it fails: {printable(trace['error'])}"))
        return
    rows = Table()
    for name in trace["columns"]:
        rows.add_column(Text(printable(name)))
    for row in trace["rows"][:_SHOWN]:
        rows.add_row(*(Text(printable(str(value))) for value in row))
    console.print(rows)
    count = len(trace["rows"])
    console.print(f"{count} row{'' if count == 1 else 's'}" + (f", {_SHOWN} shown" if count > _SHOWN else ""))


def printable(text: str) -> str:
    """Returns a text without characters that would steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)
