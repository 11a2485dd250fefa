"""CogPO with LoRA: the base stays as it is, and is its own reference.

Command:   python -m smallr.train --config=configs/cogpo_lora.py
Smoke:     python -m smallr.train --config=configs/cogpo_lora.py:smoke
Export:    python -m smallr.cli.convert --from=RUN --to=FOLDER                  (merged into the base)
           python -m smallr.cli.convert --from=RUN --to=FOLDER --adapter-only   (PEFT's format)
Hardware:  2 CPU cores with 2 GiB; any GPU or TPU.
Fields:    config.lora, see docs/adapters.md
"""

from ml_collections import ConfigDict

from smallr.config import add_lora, finish, loss_argument, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """CogPO on adapters of all projections; `arg` is a loss, `smoke`, or both."""
    loss, arg = loss_argument(arg)
    config = add_lora(preference(loss, beta={"small": 0.1, "medium": 0.2, "large": 0.5}))
    return finish(config, arg)
