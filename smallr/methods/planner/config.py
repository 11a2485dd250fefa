"""Defines the config tree of a planner's benchmark: every field, its default and its meaning.

A file in `configs/planner/` starts from `base()`. Configs are locked: a field that does not exist is an error that names
the nearest one.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.data.errors import nearest
from smallr.methods.planner.discriminators.base import MODES, RULES
from smallr.methods.planner.planners import PLANNERS, Budget
from smallr.methods.planner.prompts import FIELDS

TASKS = ("sql", "arithmetic")
KINDS = ("yes_no", "reasoning", "reward")
SEARCHES = ("iterative", "tree")  # planners that ask the generator again and again


def base() -> ConfigDict:
    """Returns all fields, not locked."""
    config = ConfigDict()
    config.seed = 0  # of draws
    config.task = "sql"  # sql | arithmetic
    config.planners = ("rerank",)  # greedy | rerank | iterative | tree | oracle
    _add_data(config)
    config.generator = ConfigDict()
    # Who proposes: http(s)://HOST/v1#MODEL or any local model; empty: the candidates of the rows, from which searches
    # draw as often as they were proposed.
    config.generator.model = ""
    config.generator.temperature = 0.2  # of proposals; a single one is greedy
    config.generator.top_p = 1.0  # draw from the fewest likeliest tokens that hold this share
    config.generator.max_tokens = 300  # of a proposal
    config.generator.prices = ConfigDict({"prompt": 0.0, "completion": 0.0})  # of a million tokens
    config.discriminator = ConfigDict()
    # Who judges; as the generator. yes_no needs a local model. Empty: no discriminator but the oracle.
    config.discriminator.model = ""
    config.discriminator.kinds = ("yes_no",)  # yes_no | reasoning | reward, which needs a run of planner/judge_reward
    config.discriminator.modes = ("naive", "check")  # naive | check | exec | pro, see docs/methods/planner.md
    config.discriminator.rules = ("soft", "hard")  # scores of reasoning: soft | hard
    config.discriminator.budget = 512  # tokens that reasoning may take
    # Smaller budgets that the report compares: read off the same answers, which are greedy.
    config.discriminator.budgets = ()
    config.discriminator.think = True  # begin its answer with an open think tag; a server may not go on with one
    config.discriminator.context = True  # the schema is in the prompt
    config.discriminator.few_shot = False  # two worked examples are in front
    config.discriminator.row_length = 2048  # tokens of a packed row of yes_no and reward
    config.discriminator.rows = 1  # packed rows a step
    config.discriminator.prices = ConfigDict({"prompt": 0.0, "completion": 0.0})  # of a million tokens
    config.oracle = ConfigDict()
    config.oracle.accuracies = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # shares of true verdicts
    config.training = ConfigDict()
    # Databases whose labelled candidates are the split `test` of rows to train a discriminator on, the others being
    # `train`; empty: no rows are written.
    config.training.holdout = ()
    config.budget = ConfigDict()
    config.budget.candidates = Budget.candidates  # proposals asked for at once
    config.budget.rounds = Budget.rounds  # of iterative
    config.budget.accept = Budget.accept  # score from which iterative stops
    config.budget.patience = Budget.patience  # rounds without a better plan after which iterative stops
    config.budget.expansions = Budget.expansions  # of tree
    # A file each; empty: smallr/methods/planner/prompts/NAME.txt
    config.prompts = ConfigDict(dict.fromkeys(FIELDS, ""))
    _add_compute(config)
    return config


def _add_data(config: ConfigDict) -> None:
    """Adds the rows, and how queries are run on their databases."""
    config.data = ConfigDict()
    config.data.source = ""  # a folder, file or glob, or hub id of questions, or builtin:arithmetic
    config.data.split = "train"  # of the source, or a part of it: train[:200]; a file is one split, train
    config.data.only = ()  # databases whose questions are taken; empty: all
    config.data.sample = 0  # so many questions, drawn by the seed; 0: all
    # The source's name of each of our columns. `candidates` is a list of plans, or of objects with `sql` or `plan` and
    # perhaps `votes` or a list `systems`; the column may be missing if there is a generator.
    config.data.columns = ConfigDict({name: name for name in ("id", "question", "database", "gold", "candidates")})
    config.data.databases = ""  # the folder of NAME.sqlite, or of NAME/NAME.sqlite, for each name in `database`
    config.data.keep_distinct = False  # DISTINCT counts when results are compared
    config.data.instances = 0  # further instances of each database, on which a right candidate must be right too
    config.limits = ConfigDict()  # of one query
    config.limits.seconds = 5.0
    config.limits.rows = 10_000
    config.limits.workers = 2  # processes at once


def _add_compute(config: ConfigDict) -> None:
    """Adds how models are run."""
    config.cache = True  # keep replies in smallr's cache, and take from there what was asked before
    config.compute = ConfigDict()  # of local models
    config.compute.dtype = "bfloat16"  # float32 | bfloat16
    config.compute.decode_slots = 16  # sequences decoded at once
    config.compute.max_length = 0  # tokens of prompt and completion together; 0: the model's context, within reason
    config.server = ConfigDict()  # of servers
    config.server.api_key_env = ""  # the environment variable that holds the key; empty: see docs/language_models.md
    config.server.concurrency = 32  # requests under way at once
    config.server.max_retries = 6  # of a request
    config.server.timeout = 600.0  # seconds of one attempt


def check(config: ConfigDict) -> None:
    """Refuses values of a benchmark that would fail late.

    Raises:
      UserError: names the field.
    """
    if not config.data.source:
        raise UserError("config.data.source is empty: name a file of questions, e.g. --config.data.source=dev.jsonl")
    check_choices(config)


def check_choices(config: ConfigDict) -> None:
    """Refuses values that are none of their choices, or out of range.

    Raises:
      UserError: names the field.
    """
    listed = {
        "task": ((config.task,), TASKS),
        "planners": (config.planners, tuple(PLANNERS)),
        "discriminator.kinds": (config.discriminator.kinds, KINDS),
        "discriminator.modes": (config.discriminator.modes, tuple(MODES)),
        "discriminator.rules": (config.discriminator.rules, RULES),
    }
    for name, (values, choices) in listed.items():
        for value in values:
            if value not in choices:
                near = nearest(value, choices)
                raise UserError(f"config.{name}: {value!r} must be one of: {', '.join(choices)}{near}")
    for name, least in (("candidates", 1), ("rounds", 1), ("patience", 1), ("expansions", 1)):
        if config.budget[name] < least:
            raise UserError(f"config.budget.{name} = {config.budget[name]} must be at least {least}")
    if config.data.instances and config.task != "sql":
        raise UserError(
            f"config.data.instances = {config.data.instances}: only databases have instances; 0 for {config.task}"
        )
    if config.discriminator.budget < 1:
        raise UserError(f"config.discriminator.budget = {config.discriminator.budget} must be at least 1")
    for smaller in config.discriminator.budgets:
        if not 1 <= smaller <= config.discriminator.budget:
            raise UserError(
                f"config.discriminator.budgets: {smaller} must be from 1 to config.discriminator.budget = "
                f"{config.discriminator.budget}, whose answers are cut"
            )
    _check_reward(config)
    for accuracy in config.oracle.accuracies:
        if not 0 <= accuracy <= 1:
            raise UserError(f"config.oracle.accuracies: {accuracy} must be from 0 to 1")


def _check_reward(config: ConfigDict) -> None:
    """Refuses what a reward head cannot be shown: it reads a question and a plan, as it was trained."""
    if "reward" not in config.discriminator.kinds:
        return
    if results := [mode for mode in config.discriminator.modes if MODES[mode][1]]:
        raise UserError(
            f"config.discriminator.modes: a reward head is not shown results, as {results[0]} does; choose naive or check"
        )
    if config.discriminator.few_shot:
        raise UserError("config.discriminator.few_shot: a reward head has no worked examples; leave out kind reward")


def budget(config: ConfigDict) -> Budget:
    """Returns the limits of a search."""
    return Budget(**config.budget.to_dict())
