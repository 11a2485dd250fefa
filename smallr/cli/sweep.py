"""Train with every combination of some fields' values, and name the best.

  smallr sweep cogpo --grid optimizer.learning_rate=1e-6,3e-6 --grid objective.beta.large=0.3,0.5 --seeds=3 --out=runs/lr
  smallr sweep sft --config.data.train=mine.jsonl --config.data.eval_fraction=0.1 --grid optimizer.learning_rate=1e-5,1e-4
  smallr sweep … --share=0/4                      the first of four parts, for four machines with a common disk

Any field of the config may be in the grid; --config.FIELD=VALUE sets one for all runs. A run is a stage: what is finished
is kept, and the same command goes on after an interruption, also within a run. `smallr stages FOLDER` shows where it stands.
At the end there are a table of means over seeds with 95 % intervals, a plot if matplotlib is installed, and the command that
trains the best setting. Runs are done one after the other, since one uses all devices of a machine.
"""

from __future__ import annotations

import contextlib
import gc
import json
import re
import shlex
import shutil
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from smallr.cli import grid
from smallr.cli.inputs import announce, check_training
from smallr.cli.parsing import Parser, UsageError
from smallr.core.early_signals import exit_on_sigterm
from smallr.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ml_collections import ConfigDict

    from smallr.core.stages import Stage, Work


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.config(trains=True)
    parser.flag("grid", [], "FIELD=VALUE,VALUE,…; may be repeated, then all combinations are run", many=True)
    parser.flag("seeds", 1, "runs of each setting, with config.seed counted up", low=1)
    parser.flag("out", None, "folder of the sweep: a folder a run, table.md, runs.csv, plot.png", required=True)
    parser.flag("metric", "", "that decides, of the held-out rows or benchmark/NAME; empty: accuracy, else loss")
    parser.flag("goal", "", "whether the lowest or the highest is the best; empty: by the metric's name: min | max")
    parser.flag("share", "0/1", "I/N: the I-th of N parts of the runs, counted from 0")
    parser.flag("keep_checkpoints", False, "keep the checkpoints of finished runs")


def run(options: Namespace) -> None:
    """Does what is missing, then writes table and plot."""
    exit_on_sigterm()
    share, settings = _share(options.share), grid.read_grid(options.grid)
    if options.goal not in ("", "min", "max"):
        raise UsageError(f"sweep: --goal={options.goal}: must be one of: min, max")
    runs = grid.stages_of(options.config, settings, options.seeds)  # all fields and values are checked here
    for config, _ in runs.values():
        check_training(config)
    announce(f"{options.out}: {len(runs)} runs; loading JAX …")

    from smallr.core.comparison import say_if_no_plots
    from smallr.core.programs import keep_programs
    from smallr.core.stages import Stages, Stopped

    keep_programs()
    check(config for config, _ in runs.values())
    out, stages = Path(options.out), Stages(Path(options.out))
    print(f"{len(settings)} settings x {options.seeds} seeds = {len(runs)} runs in {out}")
    say_if_no_plots()
    try:
        rows = stages.run(list(runs), trains(runs, options.keep_checkpoints), share)
    except Stopped:
        print(f"stopped; go on with: {options.command}")
        return
    _report(options, runs, grid.Results(rows, options.metric, options.goal))


def check(configs: Iterable[ConfigDict]) -> None:
    """Checks all that can be known of runs before any of them reads rows or weights.

    Raises:
      UserError: a run that could not be trained, or nothing to compare runs by.
    """
    from smallr.core.sharding import make_mesh
    from smallr.training import checks
    from smallr.training.rows import has_heldout

    for config in configs:
        checks.check_run(config, make_mesh(**config.mesh))
        if not (has_heldout(config) or config.benchmark.name):
            raise UserError(
                "a sweep compares runs on held-out rows or a benchmark, and the config has neither: set e.g. "
                "--config.data.eval_fraction=0.1, or --config.benchmark.name=gsm8k"
            )


def trains(runs: Mapping[Stage, tuple[ConfigDict, grid.Setting]], keep_checkpoints: bool) -> Work:
    """Returns the function that does a stage: trains in its folder, and gives the metrics of the end."""

    def work(stage: Stage, folder: Path, needs: list[Path]) -> dict[str, float]:
        from smallr.core.stages import Stopped
        from smallr.train import train
        from smallr.training.steplog import NonFiniteError

        config, _ = runs[stage]
        try:
            with (
                (folder / "log.txt").open("a") as log,
                contextlib.redirect_stdout(log),
                contextlib.redirect_stderr(log),
            ):
                report = train(config, folder)
        except NonFiniteError as error:  # a setting too bold is a finding, not a reason to end the sweep
            print(f"  diverged: {str(error).splitlines()[0]}", flush=True)
            return {grid.DIVERGED: 1.0}
        finally:
            gc.collect()  # a run's weights must not stay beside the next one's
        if not report["finished"]:
            raise Stopped(f"stopped in {folder}")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        if not keep_checkpoints:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return {**grid.metrics_of(report, lines), grid.DIVERGED: 0.0}

    return work


def _share(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UsageError(f"sweep: --share={text}: expected I/N, with I from 0 to N - 1, e.g. 0/4")
    return int(match[1]), int(match[2])


def _report(options: Namespace, runs: Mapping[Stage, tuple[ConfigDict, grid.Setting]], found: grid.Results) -> None:
    """Prints the table, the best setting and how to train it; writes the files."""
    out = Path(options.out)
    if not found.rows:
        print("no run is finished yet")
        return
    files = found.write(out)
    print(f"\n{found.table()}\n± is half of a 95 % interval over seeds (Student's t)")
    if len(found.rows) < len(runs):
        print(f"{len(found.rows)} of {len(runs)} runs are finished; the others are of other shares")
    best = found.best()
    if best is not None:
        setting = next(setting for _, setting in runs.values() if str(setting) == best)
        print(f"\nbest: {best} ({'lowest' if found.lowest else 'highest'} mean of {found.metric})")
        for other, difference in found.as_good().items():
            print(f"  not told apart by {difference.count} seed(s): {other} ({difference.show(4, signed=True)})")
        argv = shlex.split(options.command)[2:]
        print(f"train it again: {grid.train_command(argv, setting, options.config.seed)}")
    print(f"written: {', '.join(str(out / name) for name in files)}")
