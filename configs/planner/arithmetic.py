"""Planning on built-in word problems: the same planners and discriminators on a task without SQL.

Command:   smallr plan arithmetic --out=runs/plan_arithmetic
Hardware:  a CPU core.
Time:      seconds without a discriminator.
Expect:    the vote is right where the slips lead to different answers; see docs/methods/planner.md.
Fields:    config.discriminator.model=RUN adds a judge.
"""

from ml_collections import ConfigDict

from smallr.methods.planner.config import base


def get_config() -> ConfigDict:
    """A hundred problems with two right and two wrong solutions each."""
    config = base()
    config.task = "arithmetic"
    config.data.source = "builtin:arithmetic"
    config.planners = ("greedy", "rerank", "iterative", "tree", "oracle")
    config.lock()
    return config
