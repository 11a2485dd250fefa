"""Defines the config tree of a COLLATE run: every field, its default and its meaning.

A file in `configs/collate/` starts from `base()`. Configs are locked: a field that does not exist is an error that names
the nearest one.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from smallr.config import add_lora, preference
from smallr.config import base as training_fields
from smallr.core.errors import UserError
from smallr.data.errors import nearest

UTILITIES = ("mean", "sum")
WINNERS = ("utility", "random")
STAGES = ("tuning", "provider", "task")
_LEAST = {"providers": 1, "rounds": 0, "training.rows": 1, "generation.max_tokens": 1, "lora.rank": 0}


def base() -> ConfigDict:
    """Returns all fields, not locked."""
    config = ConfigDict()
    config.seed = 0  # of shares, fresh adapters, the order of rows, and samples
    config.model = "smollm2-135m-instruct"  # what is tuned first: any model that training takes
    config.providers = 2  # rationale providers, S
    config.rounds = 2  # of task-guided preference tuning; 0: stop when the providers are there
    config.distinct = True  # train each provider on its share first; False: all begin as the instruction-tuned model
    config.refine = False  # a fourth mode, in which every provider refines every rationale
    config.estimate = True  # measure the model for some seconds first, to say how long the run takes
    config.indirect = True  # measure the base model fine-tuned on instruction and generated rationale too
    _add_data(config)
    _add_marks(config)
    _add_training(config)

    config.generation = ConfigDict()  # of rationales
    config.generation.max_tokens = 256  # of a rationale; one that is cut off is dropped and counted
    config.generation.answer_tokens = 32  # of an answer; behind a rationale they come on top of max_tokens
    config.generation.temperature = 0.0  # 0: greedy, as published
    config.generation.decode_slots = 32  # rationales written at once

    config.utility = ConfigDict()
    config.utility.form = "mean"  # mean: exp of the answer's mean log-prob, as published | sum: exp of the sum
    config.utility.rows = 8  # packed rows a step of scoring
    config.utility.row_length = 1024  # tokens of a row: a question and all its rationales must fit

    config.pairs = ConfigDict()
    config.pairs.winner = "utility"  # utility | random: draw winner and loser, an ablation
    config.pairs.filter = True  # keep a pair only if the winner's utility is above that of no rationale
    return config


def _add_data(config: ConfigDict) -> None:
    """Adds the rows. A set is SOURCE or SOURCE@SPLIT; SOURCE is a folder, file or glob, hub id, tfds:name or builtin:name."""
    config.data = ConfigDict()
    # Rows with question, answer and, as far as there are any, rationale: for instruction tuning and the providers.
    config.data.rows = "builtin:arithmetic/rationale@train[:400]"
    config.data.task = ""  # rows with question and answer, for the rounds; empty: those of data.rows
    # Rows that are never trained on: they choose the provider and measure it.
    config.data.validation = "builtin:arithmetic/rationale@test"
    # The source's name of each of our columns, e.g. --config.data.columns.rationale=explanation
    config.data.columns = ConfigDict({name: name for name in ("question", "answer", "rationale")})
    config.data.answer_mark = ""  # what divides a rationale from its answer in the column answer, as GSM8K's ####


def _add_marks(config: ConfigDict) -> None:
    """Adds the texts by which a prompt tells its mode. They stand behind the question, which all modes share."""
    config.marks = ConfigDict()
    config.marks.answer = "\n\nAnswer:"  # before an answer, also behind a rationale
    config.marks.rationale = "\n\nRationale:"  # before a rationale
    config.marks.draft = "\n\nDraft:"  # before a rationale that is to be refined


def _add_training(config: ConfigDict) -> None:
    """Adds how models are trained: what all stages share, and each kind of stage."""
    config.training = ConfigDict()
    config.training.dtype = "bfloat16"  # float32 | bfloat16
    config.training.remat = "dots"  # what the backward pass recomputes: none | dots | full
    config.training.rows = 16  # packed rows a step
    config.training.row_length = 1024  # tokens of a row
    # Capacities of a row; 0: chosen for the data of each stage. Set them, and stages of one kind share one program.
    config.training.scored = 0  # scored tokens
    config.training.examples = 0  # examples
    config.training.accumulation = 1  # micro-batches a step; divides rows
    config.training.warmup = 0.1  # share of the steps
    config.training.checkpoint_every = 100  # steps; the last one is always saved

    config.tuning = ConfigDict()  # multi-mode instruction tuning
    config.tuning.epochs = 2  # passes over the mixed rows
    config.tuning.learning_rate = 1e-5  # the highest
    config.provider = ConfigDict()  # DPO of gold over own rationales, which makes the providers distinct
    config.provider.epochs = 5  # passes over a share
    config.provider.learning_rate = 1e-5  # the highest
    config.provider.beta = 0.1  # of DPO
    config.task = ConfigDict()  # DPO on the pairs of a round
    config.task.epochs = 10  # passes over the pairs
    config.task.learning_rate = 1e-5  # the highest
    config.task.beta = 0.1  # of DPO

    config.lora = ConfigDict()  # adapters of providers beside one frozen instruction-tuned model
    config.lora.rank = 0  # of each adapter; 0: full fine-tuning
    config.lora.alpha = 32.0  # the adapters' product is scaled by alpha / rank
    config.lora.target = "."  # regular expression on the paths of projections


def check(config: ConfigDict) -> None:
    """Refuses values that would fail late.

    Raises:
      UserError: names the field.
    """
    for field, choices in (("utility.form", UTILITIES), ("pairs.winner", WINNERS)):
        value = _value(config, field)
        if value not in choices:
            raise UserError(f"config.{field}={value}: must be one of: {', '.join(choices)}{nearest(value, choices)}")
    for field, least in _LEAST.items():
        if (value := _value(config, field)) < least:
            raise UserError(f"config.{field}={value}: must be at least {least}")
    if config.providers == 1 and config.rounds:
        raise UserError(
            "config.providers=1: one provider has no other to choose against, so the task stage cannot run; set "
            "config.providers to 2 or more, or config.rounds=0 to stop after the provider"
        )
    marks = {name: config.marks[name] for name in ("answer", "rationale", "draft")}
    for name, mark in marks.items():
        if not mark.strip() or mark != mark.rstrip():
            raise UserError(f"config.marks.{name}={mark!r}: must hold a word and must not end in white space")
    if len({mark.strip() for mark in marks.values()}) < len(marks):
        raise UserError(f"config.marks: {', '.join(map(repr, marks.values()))} must differ, else no mode is told apart")


def training_config(config: ConfigDict, stage: str, seed: int = 0) -> ConfigDict:
    """Returns the config of a training run of a stage: tuning, provider or task."""
    shared, own = config.training, config[stage]
    full = _sft() if stage == "tuning" else preference("sigmoid", own.beta)
    full.seed = seed
    full.compute.dtype, full.compute.remat = shared.dtype, shared.remat
    full.data.eval, full.data.chat, full.data.end = "", False, False  # rows are written out, with their end
    full.batch.rows, full.batch.row_length, full.batch.accumulation = (
        shared.rows,
        shared.row_length,
        shared.accumulation,
    )
    full.batch.scored, full.batch.examples = shared.scored, shared.examples
    if stage != "tuning" and config.lora.rank:
        add_lora(full, config.lora.rank, config.lora.alpha)
        full.lora.target = config.lora.target
    full.optimizer.learning_rate, full.optimizer.warmup = own.learning_rate, shared.warmup
    full.epochs, full.log_every = own.epochs, 10
    full.checkpoint.every, full.checkpoint.keep_last = shared.checkpoint_every, 1
    full.lock()
    return full


def _sft() -> ConfigDict:
    config = training_fields()
    config.data.kind = "sft"
    config.objective = ConfigDict()
    config.objective.name, config.objective.normalisation = "sft", "token_mean"
    return config


def _value(config: ConfigDict, field: str) -> float | str:
    group, _, name = field.rpartition(".")
    return config[group][name] if group else config[name]
