"""COLLATE on the built-in arithmetic: 32 questions with rationales, 16 held-out ones; to see all stages.

Command:   smallr collate arithmetic --out=runs/collate
Hardware:  2 CPU cores; any GPU.
Time:      not run whole: 20 minutes on two busy cores of an AMD Zen 3, by the estimate at the start.
Expect:    runs/collate is the chosen provider as a model; report.md says how good it is.
"""

from ml_collections import ConfigDict

from smallr.methods.collate.config import base


def get_config() -> ConfigDict:
    """Two providers, one round, an epoch of DPO each."""
    config = base()
    config.rounds, config.indirect = 1, False
    config.data.rows = "builtin:arithmetic/rationale@train[:32]"
    config.data.validation = "builtin:arithmetic/rationale@test[:16]"
    config.marks.answer = "\n\nResult:"  # the rationales may hold "Answer:"
    config.training.dtype, config.training.remat = "float32", "none"
    config.training.rows, config.training.row_length = 4, 512
    config.utility.row_length, config.generation.max_tokens = 1024, 160
    config.tuning.learning_rate, config.provider.learning_rate, config.task.learning_rate = 1e-4, 2e-5, 2e-5
    config.provider.epochs, config.task.epochs = 1, 1
    config.lock()
    return config
