"""Behavioural cloning: a student learns to write the sub-questions of a problem.

Command:   smallr train decomposition/bc --workdir=runs/bc
First:     smallr decompose --config=configs/decomposition/generate.py --out=runs/decomposition
Published: smallr train decomposition/bc:published    (the loss counts the tokens of the problem too)
Smoke:     the same with decomposition/bc:smoke
Hardware:  a GPU; 2 CPU cores for the smoke run, or for a student from scratch on the built-in problems.
Time:      not measured at full length.
Expect:    not run at full length. Published, with ChatGPT as solver: accuracy 0.476 / 0.508 / 0.538 of DistilGPT2, GPT-2 small
           and medium; without a solver, see docs/methods/decomposition.md.
Students of the paper: --config.model=distilgpt2, gpt2 or gpt2-medium. Its numbers are 32 examples a step (8 rows hold about as
many), 10,000 steps, a constant rate of 1e-4 and a weight decay of 0.01. Its loss counts padding too, which packed rows do not
have.
"""

from ml_collections import ConfigDict

from smallr.config import base, finish


def get_config(arg: str | None = None) -> ConfigDict:
    """Returns the likelihood of sub-questions and the end token; with `published` of the problem's tokens too."""
    config = base()
    config.data.kind, config.data.chat = "sft", False
    config.data.train = "runs/decomposition/bc"
    config.data.train_split, config.data.eval_split = "train", "test"
    if arg == "published":
        config.data.format, arg = "text", None
    config.batch.rows = 8
    config.optimizer.learning_rate, config.optimizer.weight_decay = 1e-4, 0.01
    config.optimizer.schedule, config.optimizer.warmup = "constant", 0.0
    config.epochs, config.steps = 0, 10_000
    config.objective = ConfigDict()
    config.objective.name = "sft"
    config.objective.normalisation = "token_mean"
    return finish(config, arg)
