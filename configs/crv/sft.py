"""SFT on the verified rows of a CRV run, before CogPO.

Command:   smallr train crv/sft --config.data.train=runs/crv/arithmetic/verified
Smoke:     the same with crv/sft:smoke
Hardware:  2 CPU cores with 4 GiB of memory free, or any GPU or TPU.
Time:      75 steps of 8 rows for 200 verified rows: about 10 minutes (estimated) on two cores of a Xeon with AMX.
Expect:    not measured by itself; what it is worth: docs/methods/cogpo_ablation.md.
The recipe is the published one (learning rate 2e-5, 3 epochs, 8 examples a device and step, warm-up 10 %, cosine, weight
decay 0.05): a row holds one example, so on more devices set --config.batch.rows to 8 times their number, and
--config.batch.row_length to the longest example of your rows.
CogPO follows from this run, by the authors' recipe file with 1 epoch, 2 pairs a device and step and a learning rate of 1e-6:
           smallr train cogpo --config.model=WORKDIR --config.data.train=PAIRS \
               --config.optimizer.learning_rate=1e-6 --config.epochs=1 --config.batch.packing=false --config.batch.rows=2
"""

from ml_collections import ConfigDict

from smallr.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns SFT by the published recipe; the likelihood is averaged over tokens, which is our choice."""
    config = base()
    config.data.kind = "sft"
    config.data.train = "runs/crv/arithmetic/verified"
    config.data.train_split, config.data.eval_split = "train", "test"
    config.batch.rows = 8
    config.batch.packing = False
    config.optimizer.learning_rate = 2e-5
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.1
    config.optimizer.weight_decay = 0.05
    config.epochs = 3
    config.objective = ConfigDict()
    config.objective.name = "sft"
    config.objective.normalisation = "token_mean"
    return finish(config, arg)
