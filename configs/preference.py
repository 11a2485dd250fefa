"""Any loss of the preference family, on pairs.

Command:   python -m smallr.train --config=configs/preference.py:LOSS
           LOSS is a name such as ipo, simpo, aot (docs/objectives.md has them all) or a weighted sum:
           --config='configs/preference.py:0.8*sigmoid+0.2*bco_pair+sft'
Smoke:     python -m smallr.train --config=configs/preference.py:ipo,smoke
"""

from ml_collections import ConfigDict

from smallr.config import finish, loss_argument, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """The loss with the defaults of its paper, on the built-in arithmetic pairs."""
    loss, arg = loss_argument(arg)
    return finish(preference(loss), arg)
