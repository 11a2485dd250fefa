"""CRV: fit a teacher's rationales to a small student (critique, rethink, verify).

  smallr crv annotate --config.model=http://HOST/v1#MODEL --config.data.source=rows.jsonl [--out=FOLDER]
  smallr crv annotate --config.model=oracle:arithmetic --out=runs/crv/arithmetic       to try it: seconds, no model

Reads questions with a teacher's rationales, has agents fit each rationale to a small student, and writes the data sets
`verified` and `failed` and a report to the folder. The same command goes on where a killed one was. The method and its
files: docs/methods/crv.md.
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path

from smallr.cli.inputs import announce, check, check_language_model, check_source
from smallr.cli.parsing import Parser
from smallr.core.errors import UserError


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.config("crv")
    parser.flag("out", None, "folder of the results; by default one under runs/crv")


def run(options: Namespace) -> None:
    """Runs the method and says where its results are."""
    check("config.data.source", check_source, options.config.data.source)
    if options.config.model:
        check("config.model", check_language_model, options.config.model)
    announce(f"fitting the rationales of {options.config.data.source}; loading JAX …")

    from rich.console import Console

    from smallr.core.programs import keep_programs
    from smallr.methods.crv.pipeline import default_folder, run_crv

    keep_programs()

    console = Console()
    folder = Path(options.out) if options.out else default_folder(options.config)
    report = run_crv(options.config, folder, console)
    console.print(f"verified rows: {folder / 'verified'}, others: {folder / 'failed'}, report: {folder / 'report.md'}")
    if report["open"]:
        raise UserError(
            f"{report['open']} rows got no reply ({'; '.join(report['open_errors'])}); ask them again: {options.command}"
        )
    following = shlex.join(["smallr", "pairs", f"--crv={folder}", f"--out={folder / 'pairs'}"])
    console.print(f"next: {following}", soft_wrap=True, highlight=False)
