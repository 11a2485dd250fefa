"""KTO: completions that are each labelled good or bad, no pairs.

Rows: prompt, completion, label (true or false); rows of pairs (prompt, chosen, rejected) count as two of these.

Command:   python -m smallr.train --config=configs/kto.py
Smoke:     python -m smallr.train --config=configs/kto.py:smoke
"""

from ml_collections import ConfigDict

from smallr.config import finish, unpaired


def get_config(arg: str | None = None) -> ConfigDict:
    """KTO on both sides of the built-in arithmetic pairs."""
    return finish(unpaired(), arg)
