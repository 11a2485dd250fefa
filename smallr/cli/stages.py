"""Where a job stands: smallr stages FOLDER, the folder of a method, a grid, a CRV run or an evaluation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from smallr.core.errors import UserError
from smallr.core.stage_table import show, states


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the stages of a job and their states."""
    parser = argparse.ArgumentParser(prog="smallr stages", description="Show the stages of a job and their states.")
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="of a job, of one of its stages, or of several jobs"
    )
    options = parser.parse_args(argv)
    try:
        print(show(states(options.folder)))
    except UserError as error:
        sys.exit(f"smallr: {error}")


if __name__ == "__main__":
    main()
