"""Evaluate a model: python -m smallr.cli.evaluate --config=configs/eval/gsm8k.py --config.model=RUN_OR_MODEL [--out=FOLDER]

Writes answers, samples with their verdicts, and results to the folder, and prints a table. The same command goes on
where a killed one was. All fields with their meaning stand in smallr/evals/config.py, e.g. --config.sampling.n=4
--config.sampling.temperature=0.6. Any benchmark: --config=configs/eval/benchmark.py:NAME.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from absl import app, flags, logging
from ml_collections import config_flags

from smallr.core.errors import UserError
from smallr.core.programs import keep_programs

CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config(), e.g. configs/eval/gsm8k.py")
OUT = flags.DEFINE_string("out", None, "Folder of the results; by default one under runs/evals")
UNSAFE = flags.DEFINE_bool(
    "unsafe_code_execution", False, "Run code that the model wrote without isolation, with this user's rights"
)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Runs `evals.evaluation.evaluate`; errors of the user's making are one line."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    keep_programs()

    from smallr.evals.evaluation import default_folder, evaluate  # after the cache is set
    from smallr.evals.summary import show

    config = CONFIG.value
    try:
        folder = Path(OUT.value) if OUT.value else default_folder(config)
        results = evaluate(config, folder, unsafe_code_execution=UNSAFE.value)
    except UserError as error:
        sys.exit(f"smallr: {error}")
    show(results, config.model)
    print(f"in {folder}")
    if results["missing"]:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
