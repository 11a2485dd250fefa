"""SFT: likelihood of the completion.

Command:   smallr train sft
Smoke:     smallr train sft:smoke
Hardware:  2 CPU cores with 4 GiB of memory free, or any GPU or TPU.
Time:      4 minutes on two shared cores of a Xeon with AMX.
Expect:    held-out loss (nats a token) 1.60 -> 0.80.
"""

from ml_collections import ConfigDict

from smallr.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns SFT on the built-in arithmetic rationales, question and completion as one chat turn each."""
    config = base()
    config.data.kind = "sft"
    config.data.train = "builtin:arithmetic/sft"
    config.optimizer.learning_rate = 2e-5
    config.optimizer.weight_decay = 0.05
    config.objective = ConfigDict()
    config.objective.name = "sft"
    config.objective.normalisation = "token_mean"
    return finish(config, arg)
