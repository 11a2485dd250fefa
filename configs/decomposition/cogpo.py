"""CogPO on pairs of decompositions: the gap of a pair is its difference in usefulness, and each gap has its beta.

Command:   smallr train decomposition/cogpo --workdir=runs/cogpo
First:     smallr decompose --config=configs/decomposition/generate.py --out=runs/decomposition
           smallr train decomposition/bc --workdir=runs/bc
Smoke:     the same with decomposition/cogpo:smoke
Hardware:  a GPU; 2 CPU cores for the smoke run.
Time:      not measured at full length.
Expect:    not run at full length; not published, ours beside the paper's methods.
"""

from ml_collections import ConfigDict

from smallr.config import finish, preference


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns CogPO from the BC run."""
    config = preference(beta={"small": 0.1, "medium": 0.2, "large": 0.5})
    config.model = "runs/bc"
    config.data.train = "runs/decomposition/pairs"
    config.data.train_split, config.data.eval_split = "train", "test"
    config.data.chat = False
    config.batch.rows = 8
    return finish(config, arg)
