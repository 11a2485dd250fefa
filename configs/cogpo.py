"""CogPO: preference pairs of three cognitive gaps, each gap with its own beta.

Command:   python -m smallr.train --config=configs/cogpo.py        (or: make train)
Smoke:     python -m smallr.train --config=configs/cogpo.py:smoke
"""

from ml_collections import ConfigDict

from smallr.config import finish, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """CogPO on the built-in arithmetic pairs."""
    config = preference()
    config.objective.name = "cogpo"
    config.objective.beta = ConfigDict()
    config.objective.beta.small = 0.1
    config.objective.beta.medium = 0.2
    config.objective.beta.large = 0.5
    return finish(config, arg)
