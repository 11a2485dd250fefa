"""A student that answers first or thinks first, as a mark in front of the question says; what a router is trained for.

Command:   smallr train adaptive/student
Smoke:     smallr train adaptive/student:smoke
Then:      smallr train adaptive/router --config.model=RUN
Hardware:  2 CPU cores with 4 GiB of memory free, or any GPU or TPU.
Time:      about 10 minutes (estimated) on two shared cores of a Xeon with AMX: answer_first, with two examples a row.
Expect:    not measured by itself; held-out NLL should come near those of answer_first and rationale_first.
Fields:    config.data.formats, see docs/methods/adaptive.md
"""

from ml_collections import ConfigDict

from smallr.config import MARKED, finish, rationale


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the likelihood of answer and rationale in both orders on the built-in arithmetic rows."""
    return finish(rationale(order="both", formats=MARKED), arg)
