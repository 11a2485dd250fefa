"""Evaluate a model on a benchmark.

  smallr evaluate gsm8k --config.model=RUN_OR_MODEL [--out=FOLDER]
  smallr evaluate svamp --config.model=RUN_OR_MODEL --config.sampling.n=4 --config.sampling.temperature=0.6

Any benchmark can be named; an unknown name lists them. Writes answers, samples with their verdicts, and results to the
folder, and prints a table. The same command goes on where a killed one was.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from smallr.cli.inputs import announce, check, check_language_model
from smallr.cli.parsing import Parser


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.config("eval")
    parser.flag("out", None, "folder of the results; by default one under runs/evals")
    parser.flag(
        "unsafe_code_execution", False, "run code that the model wrote without isolation, with this user's rights"
    )


def run(options: Namespace) -> int:
    """Evaluates and shows the results; 1 if some questions have none."""
    check("config.model", check_language_model, options.config.model)
    announce(f"{options.config.benchmark}: asking {options.config.model}; loading JAX …")

    from smallr.core.programs import keep_programs
    from smallr.evals.evaluation import default_folder, evaluate
    from smallr.evals.summary import show

    keep_programs()

    folder = Path(options.out) if options.out else default_folder(options.config)
    results = evaluate(options.config, folder, unsafe_code_execution=options.unsafe_code_execution)
    show(results, options.config.model)
    print(f"in {folder}")
    return 1 if results["missing"] else 0
