"""KTO: completions that are each labelled good or bad, no pairs.

Rows: prompt, completion, label (true or false); rows of pairs (prompt, chosen, rejected) count as two of these.

Command:   smallr train kto
Smoke:     smallr train kto:smoke
Hardware:  2 CPU cores with 4 GiB of memory free, or any GPU or TPU.
Time:      about 4 minutes (estimated) on two cores of a Xeon with AMX: about three completions where DPO has two.
Expect:    on GSM8K pairs, 16 steps: held-out accuracy 0.59 ± 0.04 (docs/objectives.md).
"""

from ml_collections import ConfigDict

from smallr.config import finish, unpaired


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns KTO on both completions of the built-in arithmetic pairs."""
    return finish(unpaired(), arg)
