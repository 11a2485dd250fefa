"""COLLATE on the built-in arithmetic, with a model that was made from nothing, or any other.

Command:   smallr collate arithmetic --config.model=MODEL --out=runs/collate
Smoke:     smallr collate arithmetic:smoke --out=runs/collate
Hardware:  2 CPU cores.
Time:      of the smoke run: 2 minutes. With a student of 0.7 M parameters: see docs/methods/collate.md.
Expect:    runs/collate is the chosen provider as a model; report.md says how good it is.
"""

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.methods.collate.config import base


def get_config(arg: str | None = None) -> ConfigDict:
    """Two providers, two rounds; `smoke` is a run of a few rows and steps with an untrained model."""
    config = base()
    config.training.dtype, config.training.remat = "float32", "none"
    config.training.rows, config.training.row_length = 8, 512
    config.training.scored, config.training.examples = 512, 32
    config.utility.row_length, config.generation.max_tokens = 1024, 160
    config.tuning.learning_rate, config.provider.learning_rate, config.task.learning_rate = 1e-4, 2e-5, 2e-5
    config.provider.epochs, config.task.epochs = 1, 1
    if arg == "smoke":
        config.model = "tiny-random"
        config.data.rows, config.data.validation = (
            "builtin:arithmetic/rationale@train[:16]",
            "builtin:arithmetic/rationale@test[:4]",
        )
        config.training.rows, config.tuning.epochs = 4, 1
        config.generation.max_tokens, config.generation.temperature = 8, 1.0
        config.pairs.filter = False
    elif arg:
        raise UserError(f"config argument {arg!r} is not known; the only one is 'smoke': arithmetic:smoke")
    config.lock()
    return config
