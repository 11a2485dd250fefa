"""Review what machines wrote, in the browser: accept, reject or edit each row.

  smallr review DIR                               opens a page on this machine; Ctrl-C ends it
  smallr review DIR --sample=100                  a random audit sample, from which the rest is estimated
  smallr review DIR --reviewer=ann --twice        two people on each row, each without seeing the other's decision
  smallr review DIR --report                      acceptance, agreement, errors to be expected in the rest
  smallr review DIR --export=OUT                  the data with the column `reviewed`, and with the edits

DIR is a run of smallr crv, collate, plan or decompose, an evaluation, a data set of pairs or texts, or a file of JSON
lines. Keys: a accept, r reject, e edit, u unsure, n or → next, p or ← previous, z undo, ? help. Every decision is on disk
before the page goes on; the same command continues. Train on OUT with --config.data.require_review=true, which takes
accepted and edited rows alone. Needs the extra `serve`.
"""

from __future__ import annotations

import getpass
import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from smallr.cli.inputs import announce
from smallr.cli.parsing import Parser
from smallr.core.errors import UserError
from smallr.core.files import write_text
from smallr.core.locks import output_lock

if TYPE_CHECKING:
    from smallr.review.folders import ReviewSet


def flags(parser: Parser) -> None:
    """Names the arguments."""
    parser.argument("dir", "what is reviewed")
    parser.flag("reviewer", None, "whose decisions these are; default: the user's name")
    parser.flag("twice", False, "each row is for two reviewers")
    parser.flag("sample", 0, "rows of a random audit sample that the page opens with; 0: all rows", low=0)
    parser.flag("seed", 0, "of the sample", low=0)
    parser.flag("report", False, "print the figures, and write them beside the decisions; no page")
    parser.flag("export", None, "data set (or file that ends in .jsonl) to write with the decisions; no page")
    parser.flag("accepted_only", False, "with --export: leave out rows that are not accepted or edited")
    parser.flag("port", 0, "port of the page; 0: any that is free", low=0, high=65535)
    parser.flag("open", False, "show the page in the browser")


def run(options: Namespace) -> None:
    """Opens the page, or writes what was asked for."""
    from smallr.review.decisions import read_all
    from smallr.review.folders import open_set

    if options.accepted_only and not options.export:
        raise UserError("--accepted_only belongs to --export=OUT")
    announce(f"reading {options.dir} …")
    reviewed = open_set(Path(options.dir).expanduser())
    if not (options.report or options.export):
        _serve(options, reviewed)
        return
    decided = read_all(reviewed.home)
    if options.report:
        from smallr.review.report import as_markdown, make_report

        report = make_report(reviewed, decided)
        write_text(reviewed.home / "report.json", json.dumps(report, indent=2) + "\n")
        write_text(reviewed.home / "report.md", as_markdown(report))
        print(as_markdown(report), end="")
    if options.export:
        from smallr.review.export import export

        target = Path(options.export).expanduser()
        with output_lock(target):
            counts = export(reviewed, decided, target, accepted_only=options.accepted_only)
        print(", ".join(f"{count} {name}" for name, count in counts.items()))
        print(f"written to {target}")


def _serve(options: Namespace, reviewed: ReviewSet) -> None:
    from smallr.review.decisions import Decisions
    from smallr.review.queues import Filter

    try:
        from smallr.language.serving.run import exit_on_sigterm
        from smallr.review.server import serve
        from smallr.review.session import Session
    except ModuleNotFoundError as error:
        raise UserError(f"the page needs {error.name}, which is not installed: pip install fastapi uvicorn") from error
    exit_on_sigterm()
    decisions = Decisions(reviewed.home, options.reviewer or getpass.getuser())
    try:
        start = Filter(sample=options.sample, seed=options.seed)
        serve(Session(reviewed, decisions, twice=options.twice, start=start), options.port, opens=options.open)
    finally:
        decisions.close()
