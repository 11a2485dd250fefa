"""DPO on pairs of decompositions of one problem: the one with the right answer, or the more useful one, is chosen.

Command:   smallr train decomposition/dpo --workdir=runs/dpo
First:     smallr decompose --config=configs/decomposition/generate.py --out=runs/decomposition
           smallr train decomposition/bc --workdir=runs/bc
Smoke:     the same with decomposition/dpo:smoke
Hardware:  a GPU; 2 CPU cores for the smoke run.
Time:      not measured at full length.
Expect:    not run at full length; not published, ours beside the paper's methods.
"""

from ml_collections import ConfigDict

from smallr.config import finish, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns DPO from the BC run."""
    config = preference()
    config.model = "runs/bc"
    config.data.train = "runs/decomposition/pairs"
    config.data.train_split, config.data.eval_split = "train", "test"
    config.data.chat = False
    config.batch.rows = 8
    config.objective.beta = 0.1
    return finish(config, arg)
