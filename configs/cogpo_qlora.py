"""CogPO with QLoRA: adapters on a base in 4 bits.

Command:   python -m smallr.train --config=configs/cogpo_qlora.py       (pip install 'smallr[quant]' first)
Smoke:     python -m smallr.train --config=configs/cogpo_qlora.py:smoke
Hardware:  2 CPU cores with 2 GiB; any GPU or TPU.
Fields:    config.lora, see docs/adapters.md
"""

from ml_collections import ConfigDict

from smallr.config import add_lora, finish, loss_argument, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """CogPO on adapters of all projections over an NF4 base; `arg` is a loss, `smoke`, or both."""
    loss, arg = loss_argument(arg)
    config = add_lora(preference(loss, beta={"small": 0.1, "medium": 0.2, "large": 0.5}))
    config.lora.base = "nf4"
    return finish(config, arg)
