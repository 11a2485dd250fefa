"""A discriminator by an outcome reward head: a value behind each candidate, as execution says, all of a question together.

Command:   smallr train planner/judge_reward --config.data.train=runs/plan/training_rows-DIGEST/reward --workdir=runs/judge
First:     smallr plan spider … --out=runs/plan --config.training.holdout="('world_1','car_1')"
Smoke:     the same with planner/judge_reward:smoke
Hardware:  a GPU; on 2 CPU cores some 600 steps of 2 x 1,024 tokens an hour.
Time:      92 steps of 2 x 1,024 tokens, all candidates of 657 questions, in 9 minutes on 2 CPU cores that other work shared.
Expect:    see docs/methods/planner.md; compare with the untrained judge and the vote on the databases held out:
           smallr plan spider … --config.data.only="('world_1','car_1')" --config.discriminator.model=runs/judge \
           --config.discriminator.kinds="('reward',)"
"""

from ml_collections import ConfigDict

from smallr.config import finish, outcome


def get_config(arg: str | None = None) -> ConfigDict:
    """The log-likelihood of the labels under a head on the whole decoder."""
    config = outcome()
    config.data.train_split, config.data.eval_split = "train", "test"
    config.batch.row_length = 2048
    config.optimizer.learning_rate = 2e-5
    config.optimizer.groups.heads.learning_rate = 1e-3
    config.epochs = 1
    return finish(config, arg)
