"""DPO: one beta for all pairs.

Command:   python -m smallr.train --config=configs/dpo.py
Smoke:     python -m smallr.train --config=configs/dpo.py:smoke
"""

from ml_collections import ConfigDict

from smallr.config import finish, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """DPO on the built-in arithmetic pairs."""
    config = preference()
    config.objective.beta = 0.1
    return finish(config, arg)
