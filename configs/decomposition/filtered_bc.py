"""Filtered behavioural cloning: the cloned student goes on with the decompositions that led to the right answer.

Command:   smallr train decomposition/filtered_bc --workdir=runs/filtered_bc
First:     smallr decompose --config=configs/decomposition/generate.py --out=runs/decomposition
           smallr train decomposition/bc --workdir=runs/bc
Smoke:     the same with decomposition/filtered_bc:smoke
Hardware:  a GPU; 2 CPU cores for the smoke run.
Time:      not measured at full length.
Expect:    not run at full length. Published: accuracy 0.493 / 0.527 / 0.576 where BC has 0.476 / 0.508 / 0.538; by our parser
           no difference is significant, see docs/methods/decomposition.md.
"""

from ml_collections import ConfigDict

from smallr.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the likelihood of sub-questions from the BC run; with `published` of the problem's tokens too."""
    config = base()
    config.model = "runs/bc"
    config.data.kind, config.data.chat = "sft", False
    config.data.train = "runs/decomposition/filtered_bc"
    config.data.train_split, config.data.eval_split = "train", "test"
    if arg == "published":
        config.data.format, arg = "text", None
    config.batch.rows = 8
    config.optimizer.learning_rate, config.optimizer.weight_decay = 1e-4, 0.01
    config.optimizer.schedule, config.optimizer.warmup = "constant", 0.0
    config.epochs, config.steps = 0, 30_000
    config.objective = ConfigDict()
    config.objective.name = "sft"
    config.objective.normalisation = "token_mean"
    return finish(config, arg)
