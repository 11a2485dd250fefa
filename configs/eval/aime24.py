"""AIME 2024: 30 problems with an integer as answer; use many samples.

Command:   smallr evaluate aime24 --config.model=RUN_OR_MODEL
Data:      HuggingFaceH4/aime_2024 from the hub, or a local copy: --config.data=FILE
Metric:    pass@1 of greedy answers; several samples by --config.sampling.n=8 --config.sampling.temperature=0.7
"""

from ml_collections import ConfigDict

from smallr.evals.config import base


def get_config() -> ConfigDict:
    """Returns the evaluation."""
    return base("aime24")
