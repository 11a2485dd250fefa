"""A discriminator by SFT on verdicts: one word, as execution says, on candidates of other databases.

Command:   smallr train planner/judge_sft --config.data.train=runs/plan/training_rows-DIGEST/sft --workdir=runs/judge
First:     smallr plan spider … --out=runs/plan --config.training.holdout="('world_1','car_1')"
Smoke:     the same with planner/judge_sft:smoke
Hardware:  a GPU; on 2 CPU cores some 600 steps of 2 x 1,024 tokens an hour.
Time:      80 steps of 2 x 1,024 tokens, 930 candidates, in 8 minutes on 2 CPU cores that other work shared.
Expect:    see docs/methods/planner.md; compare with the untrained judge
           and the vote on the databases held out:
           smallr plan spider … --config.data.only="('world_1','car_1')" --config.discriminator.model=runs/judge
"""

from ml_collections import ConfigDict

from smallr.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """The likelihood of the right word."""
    config = base()
    config.data.kind = "sft"
    config.data.train_split, config.data.eval_split = "train", "test"
    config.batch.row_length = 2048
    config.optimizer.learning_rate = 2e-5
    config.epochs = 1
    config.objective = ConfigDict()
    config.objective.name = "sft"
    config.objective.normalisation = "token_mean"
    return finish(config, arg)
