"""Show the stages of a job and their states: smallr stages FOLDER

FOLDER is that of a method, a grid, a CRV run or an evaluation, of one of its stages, or of several jobs.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from smallr.cli.parsing import Parser


def flags(parser: Parser) -> None:
    """Names the arguments."""
    parser.argument("folder", "of a job, of one of its stages, or of several jobs")


def run(options: Namespace) -> None:
    """Prints the stages of a job and their states."""
    from smallr.core.stage_table import show, states

    print(show(states(Path(options.folder))))
