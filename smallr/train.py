"""Train a model, or go on with a run.

  smallr train cogpo                                 a config by its name (smallr configs lists them)
  smallr train cogpo:smoke                           the same, shrunk to seconds
  smallr train my/config.py --workdir=runs/mine --config.optimizer.learning_rate=3e-7
  smallr train --workdir=runs/mine                   go on with a run, with the config that it was started with

A workdir that holds checkpoints is resumed, bit for bit. Without --workdir a new one is made under runs/.
`python -m smallr.train --config=configs/cogpo.py` is the same.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.cli.inputs import announce, check_training
from smallr.cli.parsing import Parser
from smallr.core.early_signals import exit_on_sigterm


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.config(trains=True)
    parser.flag("workdir", None, "folder for checkpoints, metrics and the report; one with checkpoints is resumed")
    parser.flag("distributed", False, "join the other processes of a multi-host run (jax.distributed) first")
    parser.flag("coordinator", None, "host:port of process 0; found by itself on TPU pods and SLURM")
    parser.flag("num_processes", None, "processes of the run; found likewise", type=int)
    parser.flag("process_id", None, "number of this process, from 0; found likewise", type=int)


def run(options: Namespace) -> None:
    """Sets up JAX and trains."""
    exit_on_sigterm()  # imports take seconds
    check_training(options.config)
    workdir = options.workdir or f"runs/{options.config_name}/{time.strftime('%Y%m%d-%H%M%S')}"
    announce(f"{workdir}: {options.config.model} on {named(options.config.data.train)}; loading JAX …")
    import jax

    if options.distributed:
        jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
    from smallr.core.programs import keep_programs

    keep_programs()
    train(options.config, Path(workdir))


def named(source: Any) -> str:
    """Returns what a run is trained on: the name of a source, or how many there are."""
    return source if isinstance(source, str) else f"{len(source)} sources"


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains as `config` says: labels of a router's rows first, and a benchmark on the way, if it names them.

    Returns:
      The report, see `Trainer.fit`.
    """
    from smallr.training.trainer import Trainer

    with Trainer(config, workdir) as trainer:
        if config.benchmark.name:  # only then are benchmarks and labels imported
            from smallr.evals.in_training import open_benchmark

            trainer.benchmark = open_benchmark(config, trainer.mesh)
        if "labels" in config:
            from smallr.methods.adaptive.labels import labelled_rows

            trainer.load_data(*labelled_rows(config))
        return trainer.fit()


if __name__ == "__main__":
    from smallr.cli.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
