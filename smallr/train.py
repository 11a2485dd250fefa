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

# transformers is here for tokenizers and configs; it need not say that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from smallr.core.cache import cache_dir
from smallr.core.errors import UserError

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
    """Sets up JAX and runs `training.loop.train`; errors of the user's making are one line, not a trace."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if DISTRIBUTED.value:
        jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    logging.set_verbosity(logging.WARNING)
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)

    from smallr.evals.in_training import open_benchmark
    from smallr.methods.adaptive.labels import Labeller  # after the cache is set
    from smallr.training.loop import train

    config_name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(WORKDIR.value or f"runs/{config_name}/{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        train(CONFIG.value, workdir, open_benchmark, Labeller(CONFIG.value))
    except UserError as error:
        sys.exit(f"smallr: {error}")


if __name__ == "__main__":
    app.run(main)
