"""ARC-Challenge: the text of one of four options.

Command:   smallr evaluate arc_challenge --config.model=RUN_OR_MODEL
Data:      allenai/ai2_arc from the hub, or a local copy: --config.data=FILE
Metric:    acc_norm, by likelihood divided by the option's characters
"""

from ml_collections import ConfigDict

from smallr.evals.config import base


def get_config() -> ConfigDict:
    """Returns the evaluation."""
    return base("arc_challenge")
