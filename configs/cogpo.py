"""CogPO: preference pairs of three cognitive gaps, each gap with its own beta.

Command:   python -m smallr.train --config=configs/cogpo.py        (or: make train)
Smoke:     python -m smallr.train --config=configs/cogpo.py:smoke
Hardware:  2 CPU cores with 3 GiB of memory free, or any GPU or TPU.
Time:      8 minutes on two shared cores of a Xeon with AMX, reference included; later runs skip the reference.
Expect:    held-out accuracy 0.50 -> 0.77 (small gap 0.95, medium 0.50, large 0.85), margin 0 -> 1.25.
Another loss with a beta per gap: --config=configs/cogpo.py:ipo, or :ipo,smoke
"""

from ml_collections import ConfigDict

from smallr.config import finish, loss_argument, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """CogPO on the built-in arithmetic pairs; `arg` is a loss, `smoke`, or both."""
    loss, arg = loss_argument(arg)
    config = preference(loss, beta={"small": 0.1, "medium": 0.2, "large": 0.5})
    return finish(config, arg)
