"""HumanEval: 164 functions, run in the sandbox against their tests.

Command:   smallr evaluate humaneval --config.model=RUN_OR_MODEL
Data:      openai/openai_humaneval from the hub, or a local copy: --config.data=FILE
Metric:    pass@1 of greedy answers; several samples by --config.sampling.n=8 --config.sampling.temperature=0.7
"""

from ml_collections import ConfigDict

from smallr.evals.config import base


def get_config() -> ConfigDict:
    """Returns the evaluation."""
    return base("humaneval")
