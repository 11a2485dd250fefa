"""ILQL: values of tokens, learned from the rewards of sub-questions; they steer the cloned student when it writes.

Command:   smallr train decomposition/ilql --workdir=runs/ilql
First:     smallr decompose --config=configs/decomposition/generate.py --out=runs/decomposition
           smallr train decomposition/bc --workdir=runs/bc
Then:      smallr generate --advantage=runs/ilql --beta=1 --prompts=FILE
Sparse:    smallr train decomposition/ilql:sparse     (rewards of the answer alone, not of sub-questions)
Released:  --config.objective.as_released=True        (the three terms of the released code, see docs/objectives.md)
Frozen:    --config.freeze=.                          (heads alone; decoding then needs one pass a token, not two)
Smoke:     the same with decomposition/ilql:smoke
Hardware:  a GPU; 2 CPU cores for the smoke run, or for a student from scratch on the built-in problems.
Time:      not measured at full length.
Expect:    not run at full length. Published: accuracy 0.474–0.482 / 0.505–0.513 / 0.531–0.533, which is that of BC.
"""

from ml_collections import ConfigDict

from smallr.config import finish, ilql


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns ILQL from the BC run; `arg` is full (the default) or sparse, or `smoke`."""
    config = ilql()
    rewards, arg = (arg, None) if arg in ("full", "sparse") else ("full", arg)
    config.model = "runs/bc"
    config.data.train = f"runs/decomposition/ilql_{rewards}"
    config.data.train_split, config.data.eval_split = "train", "test"
    config.data.chat = False
    config.data.token_columns, config.data.segment_columns = (), ("reward",)
    config.batch.rows = 8
    config.optimizer.learning_rate, config.optimizer.weight_decay = 1e-4, 0.01
    config.optimizer.schedule, config.optimizer.warmup = "constant", 0.0
    config.epochs, config.steps = 0, 10_000
    return finish(config, arg)
