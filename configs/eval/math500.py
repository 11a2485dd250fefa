"""MATH-500: 500 problems of competition mathematics, judged by math-verify.

Command:   smallr evaluate math500 --config.model=RUN_OR_MODEL
Data:      HuggingFaceH4/MATH-500 from the hub, or a local copy: --config.data=FILE
Metric:    pass@1 of greedy answers; several samples by --config.sampling.n=8 --config.sampling.temperature=0.7
"""

from ml_collections import ConfigDict

from smallr.evals.config import base


def get_config() -> ConfigDict:
    """Returns the evaluation."""
    return base("math500")
