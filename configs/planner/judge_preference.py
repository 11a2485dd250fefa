"""A discriminator by a preference loss: the word that execution says is chosen, the other one is rejected.

Command:   smallr train planner/judge_preference --config.data.train=runs/plan/training_rows-DIGEST/preference
First:     smallr plan spider … --out=runs/plan --config.training.holdout="('world_1','car_1')"
Smoke:     the same with planner/judge_preference:smoke
Hardware:  a GPU; on 2 CPU cores some 450 steps of 2 x 1,024 tokens an hour.
Time:      32 steps of 2 x 1,024 tokens, 365 pairs, in 4 minutes on 2 CPU cores that other work shared, with
           --config.objective.reference=live, which spares the pass over all rows.
Expect:    see docs/methods/planner.md; compared as planner/judge_sft.
"""

from ml_collections import ConfigDict

from smallr.config import finish, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """DPO on pairs of verdicts."""
    config = preference()
    config.data.train_split, config.data.eval_split = "train", "test"
    config.batch.row_length = 2048
    config.objective.beta = 0.1
    return finish(config, arg)
