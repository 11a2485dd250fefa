"""COLLATE on the built-in arithmetic: 400 questions with rationales, 100 held-out ones.

Command:   smallr collate arithmetic --config.model=MODEL --out=runs/collate
Hardware:  2 CPU cores for a model of a million parameters; a GPU for larger ones.
Time:      minutes for a model of a million parameters on two free cores.
Expect:    runs/collate is the chosen provider as a model; report.md says how good it is.
"""

from ml_collections import ConfigDict

from smallr.methods.collate.config import base


def get_config() -> ConfigDict:
    """Two providers, two rounds, an epoch of DPO each."""
    config = base()
    config.marks.answer = "\n\nResult:"  # the rationales may hold "Answer:"
    config.training.dtype, config.training.remat = "float32", "none"
    config.training.rows, config.training.row_length = 8, 512
    config.training.scored, config.training.examples = 512, 32
    config.utility.row_length, config.generation.max_tokens = 1024, 160
    config.tuning.learning_rate, config.provider.learning_rate, config.task.learning_rate = 1e-4, 2e-5, 2e-5
    config.provider.epochs, config.task.epochs = 1, 1
    config.lock()
    return config
