"""Holds the config tree of a training run: every field, its default and its meaning.

Sizes are those of a first run on two CPU cores with the built-in data. For your own data on an accelerator set
`data.train`, what to hold out of it, and `batch.rows` (a multiple of the devices) and `batch.row_length`.

A file in `configs/` starts from `base()` and sets what its experiment needs. Configs are locked: a field that
does not exist is an error that names the nearest one. The comments are the meanings that `smallr configs show` prints:
behind the field, or in whole lines above it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference, FrozenConfigDict

from smallr.core.errors import UserError
from smallr.data.formats import COLUMNS
from smallr.data.orders import FORMATS, PROMPT
from smallr.losses.preference import parse

# For a model that knows both orders, and is told which one by a mark that chats have room for too.
MARKED = {
    "answer_first": "[answer] {question} ### {answer} --> {rationale}",
    "rationale_first": "[think] {question} ### {rationale} --> {answer}",
}
CHOICES = (" answer", " think")


def base() -> ConfigDict:
    """Returns the fields that every training run has; `objective` is added by `preference()` or `likelihood()`."""
    config = ConfigDict()
    config.seed = 0  # of shuffling, dropout and fresh adapters
    # A hub id, a folder in Hugging Face layout, a .gguf file, a built-in name, or a run's workdir or checkpoint.
    config.model = "smollm2-135m-instruct"
    config.tokenizer = ""  # a folder or hub id whose tokenizer comes in place of the model's own; empty: none
    config.allow_nonfinite = False  # load weights that are NaN or infinite

    config.freeze = ""  # regular expression: parameters in whose path it is found stay as they are; empty: none

    _add_compute(config)
    _add_data(config)
    _add_batch(config)
    _add_optimizer(config)
    _add_schedule(config)
    return config


def _add_compute(config: ConfigDict) -> None:
    """Adds how a run computes, and the devices that it is spread over."""
    config.compute = ConfigDict()
    config.compute.dtype = "bfloat16"  # of activations and products; parameters and reductions are float32
    config.compute.remat = "dots"  # what the backward pass recomputes: none | dots | full
    config.compute.attention = "auto"  # auto | xla | tpu | gpu; auto: the kernel on TPUs, else xla
    config.compute.logp_chunk = 0  # entries of the vocabulary whose logits are held at once; 0: by platform

    config.mesh = ConfigDict()  # devices = data * fsdp * tensor * context; -1 takes what is left
    config.mesh.data = 1  # copies of the model, each with its own rows
    config.mesh.fsdp = -1  # devices over which parameters and rows are split
    config.mesh.tensor = 1  # devices over which each matrix product is split
    config.mesh.context = (
        1  # devices over which the tokens of a row are split, and parameters; for rows of 16k and more
    )


def _add_data(config: ConfigDict) -> None:
    """Adds the rows, and how they are read."""
    config.data = ConfigDict()
    config.data.kind = "preference"  # preference | unpaired | sft | completions | rationale | choice
    # A folder, file or glob, hub id, tfds:name or builtin:name. Or a list of several to mix, each like
    # {'path': 'a.jsonl', 'weight': 2}, with split, columns and format where they differ; see docs/data.md.
    config.data.train = FieldReference("builtin:arithmetic/preference", field_type=object)
    config.data.train_split = ""  # a split, or a part of it: train, train[:90%], train[100:200]; empty: all of `train`
    # Held-out rows. auto: what eval_split or eval_fraction takes of data.train, never trained on; the test rows of
    # built-in data; else none. Empty: none.
    config.data.eval = "auto"
    config.data.eval_split = ""  # e.g. test, or train[-200:]; empty: test where data.eval is named
    config.data.eval_fraction = 0.0  # share of the training rows, drawn by the seed, that is held out instead; 0: none
    config.data.builtin = ConfigDict()  # the parts of built-in data that a run takes where no split is given
    config.data.builtin.train = "train[:240]"
    config.data.builtin.eval = "test[:60]"
    # The source's name of each of our columns, e.g. --config.data.columns.prompt=question; built-in data has our names
    config.data.columns = ConfigDict({name: name for name in COLUMNS})
    config.data.completion_columns = ()  # columns with a number for each completion, see docs/objectives.md
    config.data.token_columns = ()  # columns with a number for each scored token
    # Columns with a number for each segment of each completion, and one for its end; they become token columns
    config.data.segment_columns = ()
    config.data.format = ""  # how columns are read, see docs/data.md: messages, alpaca …; empty: found out from them
    config.data.chat = True  # wrap plain strings in the tokenizer's chat template
    # Of an example that is longer than a row: drop | truncate_prompt_left, which shortens the prompt, see docs/data.md. A
    # completion is never cut.
    config.data.truncation = "drop"
    config.data.end = True  # put the end token behind plain completions; False: they write it out, or have no end
    config.data.date = "2024-07-26"  # written by chat templates that write today's, so that days do not matter


def _add_batch(config: ConfigDict) -> None:
    """Adds the shape of a step's rows."""
    config.batch = ConfigDict()
    config.batch.rows = 4  # packed rows a step, over all devices
    config.batch.row_length = 512  # tokens a row; what becomes of a longer example says data.truncation
    config.batch.accumulation = 1  # micro-batches a step; divides rows
    config.batch.packing = True  # several examples a row
    # Capacities of a row; 0: chosen for the data. Set them where rounds of different rows are to share one program.
    config.batch.scored = 0  # scored tokens
    config.batch.examples = 0  # examples
    config.batch.lookahead = 64  # examples among which the packer chooses the next of a row


def _add_optimizer(config: ConfigDict) -> None:
    """Adds the optimizer and its learning rates."""
    config.optimizer = ConfigDict()
    # adamw | adafactor | muon | adamw8bit, whose memory `smallr fit --optimizer=NAME` tells; see docs/memory.md
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-5  # the highest
    config.optimizer.schedule = "cosine"  # cosine | linear | constant, after the warm-up
    config.optimizer.warmup = 0.1  # share of the steps if below 1, else a number of steps
    config.optimizer.final_fraction = 0.0  # learning rate at the end, as a fraction of the peak
    config.optimizer.b1 = 0.9  # decay of the mean of gradients
    config.optimizer.b2 = 0.999  # decay of the mean of their squares
    config.optimizer.eps = 1e-8  # added to the root of the second
    config.optimizer.weight_decay = 0.0  # not applied to norms and biases
    config.optimizer.clip_norm = 1.0  # global gradient norm; 0: no clipping
    config.optimizer.shard_over_data = False  # split the optimizer's state over mesh.data too, see docs/scale.md
    # What the learning rate does when a run goes on with more (or fewer) steps than it was planned for. rewarm: warm up
    # again and decay over the added steps; constant: stay at the last rate; as_new: the rates of a run planned for all
    # steps from its beginning. Empty: such a run stops and asks.
    config.optimizer.on_extend = ""
    # Groups of parameters: name -> learning_rate, weight_decay, parameters (a regular expression on their paths; without
    # it those whose paths begin with the name).
    config.optimizer.groups = ConfigDict()


def _add_schedule(config: ConfigDict) -> None:
    """Adds how long a run is, and what it does on the way."""
    config.epochs = 1  # passes over the training rows; 0: no limit
    config.steps = 0  # 0: no limit; whichever of epochs and steps is reached first ends the run
    config.log_every = 1  # steps between log lines
    config.eval_every = 0  # steps between evaluations; 0: only before and after training

    config.track = ConfigDict()  # where metrics go besides the workdir's metrics.jsonl, see docs/tracking.md
    config.track.to = ("tensorboard",)  # of: tensorboard, wandb, trackio, mlflow
    config.track.project = "smallr"  # the project (MLflow: experiment) that the run appears in
    config.track.name = ""  # of the run; empty: the last two folders of its workdir

    config.best = ConfigDict()  # which checkpoint stands for the run, and when training ends early
    # A metric of the held-out rows, e.g. loss or accuracy: the checkpoint with the best one is kept and taken as the run's
    # model. Empty: the newest is.
    config.best.metric = ""
    config.best.mode = "auto"  # min | max; auto: min for losses, max for the others
    config.best.patience = 0  # evaluations without a better one after which training ends; 0: it goes on
    config.best.min_delta = 0.0  # by how much an evaluation has to be better to count as such

    config.benchmark = ConfigDict()  # answered before, during and after training, with the weights as they are
    config.benchmark.name = ""  # gsm8k, commonsense_qa …, see docs/evaluation.md; empty: none
    config.benchmark.data = ""  # a file, folder or hub id of its rows; empty: the benchmark's own on the hub
    config.benchmark.split = ""  # empty: the benchmark's own
    config.benchmark.limit = 100  # questions, from the first; 0: all
    config.benchmark.every = 0  # steps between; 0: only before and after training
    config.benchmark.max_tokens = 0  # of an answer; 0: the benchmark's own
    config.benchmark.decode_slots = 32  # answers written at once

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 100  # steps; the last step is always saved
    config.checkpoint.keep_last = 2  # newest checkpoints that are kept
    config.checkpoint.keep_every = 0  # also keep every so many steps for good; 0: none
    # Steps between folders for the Hugging Face ecosystem, workdir/hf/step-N, of which keep_last are kept; of LoRA runs they
    # hold the adapters. The last step gets one too. 0: none.
    config.checkpoint.hf_every = 0
    config.checkpoint.push_to = ""  # owner/name on the hub: these folders are uploaded to it, at least the last one
    config.checkpoint.push_private = False  # that nobody else can read the repository


def preference(loss: str = "sigmoid", beta: float | Mapping[str, float] | None = None) -> ConfigDict:
    """Returns the fields of runs on pairs; those of `config.objective` depend on what the loss declares.

    Args:
      loss: a name of `smallr.losses.preference` or a weighted sum, see docs/objectives.md.
      beta: one number, or one for each gap; by default 0.1 where the loss has a beta.
    """
    config, mix = base(), parse(loss)
    config.batch.share_prompt = True  # store a pair's prompt once; False is for comparisons
    config.objective = ConfigDict()
    config.objective.name = "preference"  # preference | unpaired | sft | rationale | choice
    config.objective.loss = loss  # a loss or a weighted sum of several, see docs/objectives.md
    if mix.beta or beta is not None:  # a beta that the loss does not have is rejected later, with the reason
        beta = 0.1 if beta is None else beta
        # Strength of the reference: one number, or one for each gap; a row's own `beta` comes first
        config.objective.beta = ConfigDict(dict(beta)) if isinstance(beta, Mapping) else beta
    # cached: one pass before training, kept on disk. live: the reference runs in every step. columns: ref_chosen and
    # ref_rejected of the rows (smallr score makes them). none: log-ratios are log-probs.
    config.objective.reference = "cached" if mix.reference else "none"
    for name, field in mix.fields.items():
        config.objective[name] = field.default
    config.objective.divergence = "reverse_kl"  # reverse_kl | forward_kl | js | alpha:A, 0 < A < 1
    config.objective.ld_alpha = 1.0  # weight of tokens behind the length of the shorter completion (LD-DPO)
    config.objective.weighting = "none"  # none | wpo
    # epoch: each pair counts the same over an epoch | step: over a step's own pairs
    config.objective.normalise = "epoch"
    config.objective.sync_every = 0  # steps between moves of a live reference to the policy (TR-DPO); 0: never
    config.objective.sync_mixing = 0.6  # the policy's share in such a move
    return config


def add_lora(config: ConfigDict, rank: int = 16, alpha: float = 32.0) -> ConfigDict:
    """Adds the fields of LoRA runs; see docs/adapters.md."""
    config.lora = ConfigDict()
    config.lora.rank = rank  # of each adapter
    config.lora.alpha = alpha  # the adapters' product is scaled by alpha / rank
    config.lora.dropout = 0.0  # of the adapters' inputs
    config.lora.rslora = False  # scale by alpha / sqrt(rank)
    # Regular expression, found in the paths of the projections that get an adapter: layers.attention.{q,k,v,o},
    # layers.mlp.{gate,up,down}.
    config.lora.target = "."
    # How the frozen projections are held: float32 | int8 | int4 | nf4 (QLoRA; needs the extra `quant`).
    config.lora.base = "float32"
    config.lora.adapter = ""  # a folder in PEFT's format to start from; empty: fresh adapters
    config.optimizer.learning_rate = 2e-4
    return config


def add_heads(config: ConfigDict, values: int = 1, q: int = 0, learning_rate: float = 1e-4) -> ConfigDict:
    """Adds the fields of value and Q heads beside the language-model head, a parameter group of their own."""
    config.heads = ConfigDict()
    config.heads.values = values  # value heads
    config.heads.q = q  # Q heads over the vocabulary
    config.heads.width = 2  # hidden units, as a multiple of the model's width
    config.heads.target = q > 0  # whether the Q heads have a target copy
    config.heads.target_mixing = 0.005  # share of the Q heads in the copy after each step (Polyak averaging)
    config.heads.start = ""  # a run whose heads to begin with; empty: fresh ones
    config.optimizer.groups.heads = ConfigDict({"learning_rate": learning_rate})  # of the heads alone
    return config


def add_soft_prompts(config: ConfigDict, length: int = 20) -> ConfigDict:
    """Adds the fields of soft prompts: trained vectors in front of each prompt, of a frozen model; see docs/adapters.md."""
    config.soft = ConfigDict()
    config.soft.length = length  # vectors of a soft prompt, each a token of a row
    config.optimizer.learning_rate = 1e-2
    return config


def add_labels(config: ConfigDict, formats: Mapping[str, str] = MARKED) -> ConfigDict:
    """Adds the fields by which rows with `question` and `answer` get labels from `config.model`; see docs/methods/adaptive.md."""
    config.student = ConfigDict()
    config.student.formats = ConfigDict(dict(formats))  # of both orders, as the student was trained with
    config.student.prompts = ""  # a folder of mode prompts that tell the student its order; empty: the formats do
    config.labels = ConfigDict()
    config.labels.margin = 0.0  # nats a token by which thinking must raise the log-prob of the answer
    config.labels.max_tokens = 256  # of the student's own rationale and answer
    config.labels.decode_slots = 32  # rationales written at once
    return config


def choice() -> ConfigDict:
    """Returns the fields of runs on questions with two choices, of which each row's `label` says which is right."""
    config = base()
    config.data.kind = "choice"
    config.data.prompt = PROMPT  # in a chat only what stands before and in {question}
    config.data.choices = CHOICES  # two texts, of which the first token is read
    config.objective = ConfigDict()
    config.objective.name = "choice"
    config.objective.balanced = True  # both labels weigh the same in total
    return config


def unpaired() -> ConfigDict:
    """Returns the fields of KTO runs: completions with a label each."""
    config = base()
    config.batch.share_prompt = True  # store a prompt once for a completion and its mismatched one
    config.data.kind = "unpaired"
    config.objective = ConfigDict()
    config.objective.name = "unpaired"
    config.objective.beta = 0.1  # a row's own `beta` comes first
    config.objective.desirable_weight = 1.0  # of rows that are labelled good
    config.objective.undesirable_weight = 1.0  # of rows that are labelled bad
    config.objective.reference = "cached"  # cached | live, as for pairs
    config.objective.normalise = "epoch"  # epoch: each row counts the same over an epoch | step: over a step's own rows
    config.objective.sync_every = 0
    config.objective.sync_mixing = 0.6
    return config


def ilql() -> ConfigDict:
    """Returns the fields of ILQL: completions with a reward for each scored token, whose values heads learn."""
    config = add_heads(base(), values=1, q=2)
    config.data.kind = "completions"
    config.data.token_columns = ("reward",)
    config.objective = ConfigDict()
    config.objective.name = "ilql"
    config.objective.gamma = 0.999  # discount of a token
    config.objective.tau = 0.9  # expectile of V: 0.5 makes it a mean, towards 1 a maximum
    config.objective.conservative_weight = 0.01  # of logsumexp Q - Q, which keeps Q of unseen tokens down
    config.objective.as_released = False  # the three terms in which the released code differs, see docs/objectives.md
    return config


def outcome() -> ConfigDict:
    """Returns the fields of an outcome reward model: completions that are right or wrong, which a value head learns."""
    config = add_heads(base(), values=1)
    config.data.kind = "completions"
    config.data.completion_columns = ("correct",)
    config.objective = ConfigDict()
    config.objective.name = "outcome"
    return config


def rationale(order: str, formats: Mapping[str, str] = FORMATS) -> ConfigDict:
    """Returns the fields of likelihood runs on question, rationale and answer.

    Args:
      order: answer_first | rationale_first | both.
      formats: the texts of the two orders.
    """
    config = base()
    config.data.kind = "rationale"
    config.data.train = "builtin:arithmetic/rationale"
    config.data.order = order  # answer_first | rationale_first | both
    # What ends the first part is the separator: rows in whose first part it occurs are dropped and counted. In a chat
    # the question is the user's message, and the format's text between it and the first part is left out.
    config.data.formats = ConfigDict(dict(formats))
    config.optimizer.learning_rate = 1e-4
    config.objective = ConfigDict()
    config.objective.name = "rationale"
    config.objective.answer_weight = 1.0  # of the answer in the loss
    config.objective.rationale_weight = 1.0  # of the rationale in the loss
    config.objective.normalisation = "sum"  # of tokens: sum | token_mean | sample_mean
    config.objective.amplify = 0.0  # clip of the weight by a sample's rationale NLL; 0: off
    config.objective.window = 256  # examples over which the rank correlation of the two NLLs is taken
    return config


def to_plain(value: Any) -> Any:
    """Returns a config in JSON's types: a list may hold configs, e.g. the sources of `data.train`."""
    if isinstance(value, ConfigDict | FrozenConfigDict):
        return to_plain(value.to_dict())
    if isinstance(value, Mapping):
        return {name: to_plain(each) for name, each in value.items()}
    return [to_plain(each) for each in value] if isinstance(value, list | tuple) else value


def loss_argument(arg: str | None, default: str = "sigmoid") -> tuple[str, str | None]:
    """Splits the argument `LOSS`, `smoke` or `LOSS,smoke` of a config file into the loss and what `finish` takes."""
    parts = (arg or "").split(",")
    losses = [part for part in parts if part and part != "smoke"]
    if difflib.get_close_matches("".join(losses), ["smoke"], cutoff=0.7):
        raise UserError(f"config argument {arg!r}: did you mean 'smoke'?")
    if len(losses) > 1:
        raise UserError(f"config argument {arg!r}: one loss and `smoke` are known, e.g. cogpo:ipo,smoke")
    return (losses or [default])[0], "smoke" if "smoke" in parts else None


def finish(config: ConfigDict, arg: str | None) -> ConfigDict:
    """Applies the argument after the colon of `--config=FILE:ARG` and locks the config.

    Raises:
      UserError: an argument other than `smoke`.
    """
    if arg == "smoke":
        config.model = "tiny-random"
        config.compute.dtype = "float32"
        config.compute.remat = "none"
        config.data.builtin.train, config.data.builtin.eval = "train[:32]", "test[:16]"
        config.batch.rows, config.batch.row_length = 2, 512
        config.optimizer.learning_rate = 1e-3
        config.epochs, config.steps = 0, 4
        config.eval_every = 2
        config.checkpoint.every = 2
    elif arg:
        raise UserError(f"config argument {arg!r} is not known; the only one is 'smoke', e.g. sft:smoke")
    config.lock()
    return config
