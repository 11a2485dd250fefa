"""A student that answers first or thinks first, as a mark in front of the question says; what a router is trained for.

Command:   python -m smallr.train --config=configs/adaptive/student.py
Smoke:     python -m smallr.train --config=configs/adaptive/student.py:smoke
Then:      --config=configs/adaptive/router.py --config.model=RUN
Hardware:  as configs/adaptive/answer_first.py; each row makes two examples.
Fields:    config.data.formats, see docs/methods/adaptive.md
"""

from ml_collections import ConfigDict

from smallr.config import MARKED, finish, rationale


def get_config(arg: str | None = None) -> ConfigDict:
    """Likelihood of answer and rationale in both orders on the built-in arithmetic rows."""
    return finish(rationale(order="both", formats=MARKED), arg)
