"""COLLATE: small models that teach each other by the likelihood of the gold answer, with no larger judge.

  smallr collate gsm8k --out=runs/collate
  smallr collate arithmetic --out=runs/collate                          to try it: about 20 minutes on two cores
  smallr collate base --config.data.rows=rows.jsonl --config.data.validation=test.jsonl --out=runs/collate

Tunes a model in three modes, trains distinct rationale providers from it, and has them learn from each other's rationales
in rounds. The same command goes on where a killed one was. The folder is a model for every other command: the chosen
provider, with its prompt formats. The method and its files: docs/methods/collate.md.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from smallr.cli.parsing import Parser


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.config("collate")
    parser.flag("out", "runs/collate", "folder of the run")


def run(options: Namespace) -> None:
    """Runs the method and says what to do next."""
    from smallr.core.programs import keep_programs
    from smallr.methods.collate.report import REPORT, next_commands
    from smallr.methods.collate.stages import run_collate

    keep_programs()
    folder = Path(options.out)
    report = run_collate(options.config, folder)
    print(f"provider {report['choice']['chosen']} is chosen; report: {folder / REPORT}")
    print("\n".join(f"next: {command}" for command in next_commands(folder, options.config)))
