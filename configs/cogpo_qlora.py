"""CogPO with QLoRA: adapters on a base in 4 bits.

Command:   smallr train cogpo_qlora       (pip install '.[quant]' in the clone first)
Smoke:     smallr train cogpo_qlora:smoke
Hardware:  2 CPU cores with 2 GiB of memory free, or any GPU or TPU.
Time:      3.2 s a step where the config cogpo takes 3.4 (docs/adapters.md).
Expect:    weights of 184 MiB instead of 513. 4 bits cost a model of 135 M much (a scored token's log-prob moves by 0.57
           nats); --config.lora.base=int8 costs 0.05.
Fields:    config.lora, see docs/adapters.md
"""

from ml_collections import ConfigDict

from smallr.config import add_lora, finish, loss_argument, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns CogPO on adapters of all projections over an NF4 base; `arg` is a loss, `smoke`, or both."""
    loss, arg = loss_argument(arg)
    config = add_lora(preference(loss, beta={"small": 0.1, "medium": 0.2, "large": 0.5}))
    config.lora.base = "nf4"
    return finish(config, arg)
