"""Planning on a database of your own: one question, candidates from a generator, a pick by a discriminator or the vote.

Command:   smallr plan --db=my.sqlite --question="How many …?" --generator=MODEL --discriminator=MODEL
Hardware:  what the models need; two CPU cores do for models of 135M parameters.
Time:      seconds for the queries; besides, what the models take.
Expect:    a trace of candidates, checks and scores, the pick and its rows; the file is never written.
Fields:    all of configs/planner/spider.py but those of data.
"""

from ml_collections import ConfigDict

from smallr.methods.planner.config import base


def get_config() -> ConfigDict:
    """Candidates are checked, then judged in one word."""
    config = base()
    config.discriminator.modes = ("check",)
    config.discriminator.rules = ("soft",)
    config.data.keep_distinct = True
    config.lock()
    return config
