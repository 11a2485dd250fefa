"""Write one page on runs: curves, tables, samples, configuration. It opens in any browser and needs no network.

  smallr report runs/mine                       writes runs/mine/report.html
  smallr report runs/a runs/b --to=both.html    several runs side by side
  smallr report runs/mine --samples=4           lets the model write before and after training first

A run that is still going on is shown as far as it is.
"""

from __future__ import annotations

import webbrowser
from argparse import Namespace
from pathlib import Path

from smallr.cli.inputs import announce
from smallr.cli.parsing import Parser
from smallr.core.errors import UserError


def flags(parser: Parser) -> None:
    """Names the arguments."""
    parser.argument("runs", "workdirs of runs", count="+")
    parser.flag("to", None, "file to write; by default report.html in the workdir of a single run, else in this folder")
    parser.flag(
        "samples", 0, "prompts that the models write on, before and after training; 0: those of an earlier call"
    )
    parser.flag("open", False, "show it in the browser")


def run(options: Namespace) -> None:
    """Reads the runs and writes the page."""
    from smallr.reporting.page import open_runs, write_page

    workdirs = [Path(name).expanduser() for name in options.runs]
    runs = open_runs(workdirs)
    if options.samples < 0:
        raise UserError(f"--samples: {options.samples} must not be negative")
    if options.samples:
        announce("loading JAX …")
        from smallr.reporting.samples import write_samples

        for workdir in workdirs:
            announce(f"{workdir}: writing on {options.samples} prompts …")
            write_samples(workdir, options.samples)
        runs = open_runs(workdirs)
    target = Path(options.to or (workdirs[0] / "report.html" if len(runs) == 1 else "report.html")).expanduser()
    write_page(runs, target)
    print(target)
    if options.open:
        webbrowser.open(target.absolute().as_uri())
