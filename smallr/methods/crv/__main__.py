"""CRV: python -m smallr.methods.crv --config=configs/crv/annotate.py --config.model=http://HOST/v1#MODEL [--out=FOLDER]

Reads questions with a teacher's rationales, has agents fit each rationale to a small student, and writes the data sets
`verified` and `failed` and a report to the folder. The same command goes on where a killed one was. All fields with their
meaning stand in smallr/methods/crv/config.py; the method and its files in docs/methods/crv.md.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import app, flags, logging
from ml_collections import config_flags
from rich.console import Console

from smallr.core.errors import UserError
from smallr.methods.crv.pipeline import default_folder, run_crv

CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config(), e.g. configs/crv/annotate.py")
OUT = flags.DEFINE_string("out", None, "Folder of the results; by default one under runs/crv")
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Runs `run_crv`; reports a user error in one line instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    console = Console()
    try:
        folder = Path(OUT.value) if OUT.value else default_folder(CONFIG.value)
        report = run_crv(CONFIG.value, folder, console)
    except UserError as error:
        sys.exit(f"smallr: {error}")
    console.print(f"verified rows: {folder / 'verified'}, others: {folder / 'failed'}, report: {folder / 'report.md'}")
    if report["open"]:
        sys.exit(
            f"smallr: {report['open']} rows got no reply ({'; '.join(report['open_errors'])}); the same command asks them again"
        )


if __name__ == "__main__":
    app.run(main)
