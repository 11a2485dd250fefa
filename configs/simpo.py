"""SimPO: no reference; the reward is beta times the mean log-prob of a token, with a target margin.

Command:   python -m smallr.train --config=configs/simpo.py
Smoke:     python -m smallr.train --config=configs/simpo.py:smoke
"""

from ml_collections import ConfigDict

from smallr.config import finish, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """SimPO on the built-in arithmetic pairs; beta and gamma as in the paper's smallest settings."""
    config = preference("simpo", beta=2.0)
    config.objective.simpo_gamma = 1.0
    return finish(config, arg)
