"""SimPO: no reference; the reward is beta times the mean log-prob of a token, with a target margin.

Command:   smallr train simpo
Smoke:     smallr train simpo:smoke
Hardware:  2 CPU cores with 4 GiB of memory free, or any GPU or TPU.
Time:      about 2 minutes (estimated) on two cores of a Xeon with AMX: as cogpo, without a reference pass.
Expect:    on GSM8K pairs, 16 steps: held-out accuracy 0.51 ± 0.04, no better than chance (docs/objectives.md).
"""

from ml_collections import ConfigDict

from smallr.config import finish, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns SimPO on the built-in arithmetic pairs; beta and gamma as in the paper's smallest settings."""
    config = preference("simpo", beta=2.0)
    config.objective.simpo_gamma = 1.0
    return finish(config, arg)
