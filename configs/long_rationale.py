"""SFT on long rationales: rows of 32,768 tokens, each split over all devices (context parallelism).

Command:   smallr train long_rationale --config.data.train=rows.jsonl --config.model=Qwen/Qwen2.5-0.5B-Instruct
Smoke:     smallr train long_rationale:smoke
Hardware:  a TPU slice such as v5e-16, or several GPUs; a row then takes 1.2 of a v5e's 16 GiB with
           0.5B parameters. For N rows at a time set mesh.data=N or mesh.fsdp=N, and batch.rows=N. On one device it is sft.
Time:      never run at this length; docs/scale.md has its memory and its bounds, read from the compiled program.
Expect:    the smoke run's loss falls; the built-in rows are short, so give rows of your own.
"""

from ml_collections import ConfigDict

from smallr.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns SFT of which a row fills several devices; without rows of your own, on the built-in arithmetic rationales."""
    config = base()
    config.data.kind = "sft"
    config.data.train = "builtin:arithmetic/sft"
    config.batch.rows, config.batch.row_length = 1, 32768  # a multiple of 1024 times the devices keeps tiles whole
    config.mesh.fsdp, config.mesh.context = 1, -1  # parameters are split over context as over fsdp
    config.compute.remat = "full"  # at this length activations are most of the memory
    config.optimizer.learning_rate = 2e-5
    config.objective = ConfigDict()
    config.objective.name = "sft"
    config.objective.normalisation = "token_mean"
    return finish(config, arg)
