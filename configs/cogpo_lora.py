"""CogPO with LoRA: the base stays as it is, and is its own reference.

Command:   smallr train cogpo_lora
Smoke:     smallr train cogpo_lora:smoke
Export:    smallr convert --from=RUN --to=FOLDER                  (merged into the base)
           smallr convert --from=RUN --to=FOLDER --adapter_only --base=BASE   (PEFT's format)
Hardware:  2 CPU cores with 2.5 GiB of memory free, or any GPU or TPU.
Time:      3.0 s a step where the config cogpo takes 3.4 (docs/adapters.md).
Expect:    memory of a step 1.4 GiB instead of 2.8; metrics at full length were not measured.
Fields:    config.lora, see docs/adapters.md
"""

from ml_collections import ConfigDict

from smallr.config import add_lora, finish, loss_argument, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns CogPO on adapters of all projections; `arg` is a loss, `smoke`, or both."""
    loss, arg = loss_argument(arg)
    config = add_lora(preference(loss, beta={"small": 0.1, "medium": 0.2, "large": 0.5}))
    return finish(config, arg)
