"""GSM8K: 1319 word problems with a number as answer.

Command:   smallr evaluate gsm8k --config.model=RUN_OR_MODEL
Data:      openai/gsm8k from the hub, or a local copy: --config.data=FILE
Metric:    pass@1 of greedy answers; several samples by --config.sampling.n=8 --config.sampling.temperature=0.7
"""

from ml_collections import ConfigDict

from smallr.evals.config import base


def get_config() -> ConfigDict:
    """Returns the evaluation."""
    return base("gsm8k")
