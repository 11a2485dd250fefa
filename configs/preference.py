"""Any loss of the preference family, on pairs.

Command:   smallr train preference:LOSS
           LOSS is a name such as ipo, simpo, aot (docs/objectives.md has them all) or a weighted sum:
           smallr train 'preference:0.8*sigmoid+0.2*bco_pair+sft'
Smoke:     smallr train preference:ipo,smoke
Hardware:  2 CPU cores with 4 GiB of memory free, or any GPU or TPU.
Time:      3 minutes on two cores of a Xeon with AMX, as cogpo; less for a loss without a reference.
Expect:    the loss `sigmoid` is the config dpo; docs/objectives.md has held-out metrics of 27 losses on two data sets.
"""

from ml_collections import ConfigDict

from smallr.config import finish, loss_argument, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the loss with the defaults of its paper, on the built-in arithmetic pairs."""
    loss, arg = loss_argument(arg)
    return finish(preference(loss), arg)
