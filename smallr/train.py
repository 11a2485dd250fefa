# ruff: noqa: E402 - the first lines are for signals that come while modules are imported
"""Train a model: python -m smallr.train --config=configs/cogpo.py [--workdir=DIR] [--config.FIELD=VALUE …]

A workdir that holds checkpoints is resumed, bit for bit. Without --workdir a new one is made under runs/.
Configs are files in configs/; the argument `smoke` (configs/cogpo.py:smoke) shrinks one to seconds.
All fields with their meaning stand in smallr/config.py, e.g. --config.optimizer.learning_rate=3e-7.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from smallr.core.early_signals import exit_on_sigterm

exit_on_sigterm()  # imports take seconds

# transformers is here for tokenizers and configs; it need not say that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from smallr.core.errors import UserError
from smallr.core.programs import keep_programs

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(), e.g. configs/cogpo.py or configs/cogpo.py:smoke"
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints, metrics and the report; one with checkpoints is resumed"
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a multi-host run (jax.distributed) first"
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0; found by itself on TPU pods and SLURM")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run; found likewise")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0; found likewise")
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Sets up JAX and trains; reports a user error in one line instead of a traceback."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if DISTRIBUTED.value:
        jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    logging.set_verbosity(logging.WARNING)
    keep_programs(1.0)
    config_name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(WORKDIR.value or f"runs/{config_name}/{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        run(CONFIG.value, workdir)
    except UserError as error:
        sys.exit(f"smallr: {error}")


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains as `config` says: labels of a router's rows first, and a benchmark on the way, if it names them."""
    from smallr.evals.in_training import open_benchmark  # after the cache is set
    from smallr.methods.adaptive.labels import labelled_rows
    from smallr.training.trainer import Trainer

    with Trainer(config, workdir) as trainer:
        trainer.benchmark = open_benchmark(config, trainer.mesh)
        if "labels" in config:
            trainer.load_data(*labelled_rows(config))
        trainer.fit()


if __name__ == "__main__":
    app.run(main)
