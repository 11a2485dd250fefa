"""CommonsenseQA: the letter of one of five options.

Command:   smallr evaluate commonsense_qa --config.model=RUN_OR_MODEL
Data:      tau/commonsense_qa from the hub, or a local copy: --config.data=FILE
Metric:    acc, by likelihood
"""

from ml_collections import ConfigDict

from smallr.evals.config import base


def get_config() -> ConfigDict:
    """Returns the evaluation."""
    return base("commonsense_qa")
