"""Decomposition: sub-questions of problems by a teacher, and how good those of a student are.

  smallr decompose --config.model=http://HOST/v1#MODEL --config.data.source=FILE [--out=FOLDER]          data by a teacher
  smallr decompose --out=runs/decompose/arithmetic                                                       to try it: seconds
  smallr decompose --convert=qg_train_dataset.jsonl --out=runs/decompose/gsm8k                           data that is there
  smallr decompose --solve --config.student.model=RUN --config.solver.model=MODEL [--out=FOLDER]         measure a student

The first form has a teacher write sub-questions, answer them and judge them; the second reads the published data set
(GSM8K-AI-SubQ), raw or not. Both write the data sets that `smallr train decomposition/bc` and its neighbours read. The same
command goes on where a killed one was. The method and its files: docs/methods/decomposition.md.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from smallr.cli.inputs import announce, check, check_language_model, check_source
from smallr.cli.parsing import Parser, UsageError
from smallr.core.errors import UserError


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.config("decomposition", default=lambda options: "solve" if options.solve else "generate")
    parser.flag("out", None, "folder of the results; by default one under runs/decompose")
    parser.flag("solve", False, "measure a student's sub-questions")
    parser.flag("convert", None, "rows in the published layout, raw or not, to write training data of")
    parser.flag("split", "train", "of --convert")
    parser.flag(
        "validation", 0.1, "of --convert: share of the problems that go into the split validation", low=0, high=1
    )


def run(options: Namespace) -> None:
    """Generates, converts or measures, and says where the results are."""
    is_solving = "student" in options.config
    if options.solve != is_solving:
        raise UsageError(
            f"decompose: the config {options.config_name} is one of {'solving: add --solve' if is_solving else 'generation'}"
        )
    if options.convert:
        _convert(options)
    elif options.solve:
        _solve(options)
    else:
        _generate(options)


def _generate(options: Namespace) -> None:
    config = options.config
    check("config.data.source", check_source, config.data.source)
    if config.model:
        check("config.model", check_language_model, config.model)
    announce(f"decomposing the problems of {config.data.source}; loading JAX …")

    from rich.console import Console

    from smallr.core.programs import keep_programs
    from smallr.methods.decomposition.pipeline import default_folder, run_generation

    keep_programs()
    console = Console()
    folder = Path(options.out) if options.out else default_folder(config)
    report = run_generation(config, folder, console)
    if not report["sets"]["kept"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report["drops"].items())
        raise UserError(
            f"no set of sub-questions could be used ({reasons or 'no replies'}): see {folder / 'report.md'}"
        )
    console.print(f"decompositions: {folder / 'decompositions'}, report: {folder / 'report.md'}", soft_wrap=True)
    if report["open"]:
        raise UserError(
            f"{report['open']} problems got no reply ({'; '.join(report['open_errors'])}); ask them again: {options.command}"
        )
    console.print(f"next: smallr train decomposition/bc --config.data.train={folder / 'bc'}", soft_wrap=True)


def _convert(options: Namespace) -> None:
    if not options.out:
        raise UsageError("decompose: --convert needs --out, the folder of the data sets")
    check("--convert", check_source, options.convert)

    from smallr.methods.decomposition.config import markers_of
    from smallr.methods.decomposition.output import convert

    config = options.config
    report = convert(
        options.convert,
        options.split,
        Path(options.out),
        validation=options.validation,
        parser=config.parser,
        markers=markers_of(config),
    )
    for name, counts in report["rows"].items():
        empty = " (not written)" if not any(counts.values()) else ""
        print(f"{name}: {', '.join(f'{count} {split}' for split, count in counts.items())}{empty}")
    if report["left_out"]:
        print(f"left out: {len(report['left_out'])} rows, see {Path(options.out) / 'convert.json'}")


def _solve(options: Namespace) -> None:
    config = options.config
    check("config.data.source", check_source, config.data.source)
    for name in ("student", "solver"):
        if config[name].model:
            check(f"config.{name}.model", check_language_model, config[name].model)

    from smallr.core.programs import keep_programs
    from smallr.methods.decomposition.solving import run_solving

    keep_programs()
    folder = Path(options.out or "runs/decompose/solve")
    run_solving(config, folder)
    print((folder / "report.md").read_text(encoding="utf-8").partition("## Samples")[0].rstrip())
    print(f"report: {folder / 'report.md'}, problem by problem: {folder / 'solved.jsonl'}")
