"""Rationale first (pre-thinking): question, rationale, then the answer.

Command:   python -m smallr.train --config=configs/rationale_first.py
Smoke:     python -m smallr.train --config=configs/rationale_first.py:smoke
"""

from ml_collections import ConfigDict

from smallr.config import finish, rationale


def get_config(arg: str | None = None) -> ConfigDict:
    """Likelihood of answer and rationale on the built-in arithmetic rows."""
    return finish(rationale(order="rationale_first"), arg)
