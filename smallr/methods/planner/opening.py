"""Opens what a config names: the task, the generator, the discriminators. Models are loaded when they are first asked."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from smallr.agents.agent import sampling_params
from smallr.agents.prompts import Prompts
from smallr.core.errors import UserError
from smallr.core.stage_values import identity_of
from smallr.evals.isolation.queries import QueryRunner
from smallr.evals.isolation.sqlite import Limits
from smallr.language.base import Prices
from smallr.language.opening import open_configured
from smallr.methods.planner.arithmetic import ArithmeticTask
from smallr.methods.planner.discriminators.base import Discriminator
from smallr.methods.planner.prompts import JudgePrompt, RewardPrompt, load_examples, load_prompts
from smallr.methods.planner.sql.task import SqlTask


@dataclasses.dataclass(frozen=True)
class Tools:
    """What the stages of a run work with."""

    config: ConfigDict
    prompts: Prompts
    task: SqlTask | ArithmeticTask


@contextlib.contextmanager
def open_tools(config: ConfigDict) -> Iterator[Tools]:
    """Opens the task of a config, and closes it at the end.

    Raises:
      UserError: a prompt that cannot be used.
    """
    prompts = load_prompts(config.prompts)
    if config.task == "arithmetic":
        yield Tools(config, prompts, ArithmeticTask(prompts))
        return
    limits = Limits(seconds=config.limits.seconds, rows=config.limits.rows)
    with QueryRunner(config.limits.workers, limits) as runner:
        yield Tools(config, prompts, SqlTask(runner, prompts, keep_distinct=config.data.keep_distinct))


@dataclasses.dataclass(frozen=True)
class Judging:
    """A discriminator that is not open yet.

    Attributes:
      kind: one of `config.KINDS`.
      shows_results: whether the outcome of a plan is in its prompt.
      checks: whether plans that do not execute are kept from it.
    """

    tools: Tools
    kind: str
    shows_results: bool
    checks: bool = False

    @property
    def name(self) -> str:
        """Tells it from the others of a run."""
        return f"{self.kind}_results" if self.shows_results else self.kind

    @property
    def digest(self) -> str:
        """What its judgements depend on, besides the plans."""
        config, fields = self.tools.config, self.tools.config.discriminator
        settings = {name: fields[name] for name in ("context", "few_shot")}
        if self.kind == "reasoning":
            settings |= {name: fields[name] for name in ("budget", "think")}
        if self.kind != "reasoning":
            settings |= {"row_length": fields.row_length}
        compute = {"dtype": config.compute.dtype, "max_length": config.compute.max_length}
        return json.dumps(
            [self.name, self.checks, model_identity(fields.model), settings, compute, self.tools.prompts.digest]
        )

    @contextlib.contextmanager
    def open(self) -> Iterator[Discriminator]:
        """Loads the model, and frees it at the end.

        Raises:
          UserError: no such model, or one that cannot judge in this way.
        """
        config = self.tools.config
        fields = config.discriminator
        if self.kind == "reward":
            yield _reward(self.tools)
            return
        name = "reason" if self.kind == "reasoning" else self.kind
        prompt = judge_prompt(self.tools, name, shows_results=self.shows_results)
        if self.kind == "reasoning":
            from smallr.methods.planner.discriminators.reasoning import THINK, Reasoning

            with contextlib.closing(open_configured(config, fields.model)) as model:
                opening = THINK if fields.think else ""
                yield Reasoning(model, prompt, identity=fields.model, budget=fields.budget, opening=opening)
        else:
            yield _yes_no(config, prompt)


def judge_prompt(tools: Tools, name: str, *, shows_results: bool) -> JudgePrompt:
    """Returns what writes a discriminator's prompts, as the config wants them."""
    fields = tools.config.discriminator
    return JudgePrompt(
        tools.prompts,
        name,
        tools.task,
        shows_context=fields.context,
        shows_result=shows_results,
        examples=load_examples(tools.config.task, name) if fields.few_shot else "",
    )


def reward_prompt(tools: Tools) -> RewardPrompt:
    """Returns what writes the prompts of a reward head, as the config wants them."""
    return RewardPrompt(tools.prompts, tools.task, shows_context=tools.config.discriminator.context)


def _local(config: ConfigDict, why: str) -> str:
    """Returns the name of the discriminator's model; raises UserError if it is a server's."""
    name = config.discriminator.model
    if name.startswith(("http:", "https:")):
        raise UserError(
            f"config.discriminator.model = {name!r}: {why}, which a server does not give: choose "
            "config.discriminator.kinds=reasoning, or a local model"
        )
    return name


def _reward(tools: Tools) -> Discriminator:
    config = tools.config
    name = _local(config, "reward reads a value head of a run")
    import jax

    from smallr.core.sharding import make_mesh
    from smallr.language.loading import load_trained
    from smallr.methods.planner.discriminators.reward import Reward
    from smallr.training.policy import attach_saved_heads
    from smallr.training.saved import find_run

    mesh = make_mesh(-1, 1, 1)
    with jax.set_mesh(mesh):
        source, decoder = load_trained(name, mesh, dtype=config.compute.dtype)
        attach_saved_heads(decoder, name, mesh)
    fields = config.discriminator
    return Reward(
        decoder,
        source.tokenizer(),
        mesh,
        reward_prompt(tools),
        identity=name,
        chat=find_run(Path(name).expanduser()).config["data"]["chat"],  # plans are read as they were in training
        rows=fields.rows,
        row_length=fields.row_length,
    )


def _yes_no(config: ConfigDict, prompt: JudgePrompt) -> Discriminator:
    name = _local(config, "yes_no reads the probability of a token from the weights")
    import jax  # only now: a run without a local model needs none of this

    from smallr.core.sharding import make_mesh
    from smallr.language.loading import load_trained
    from smallr.methods.planner.discriminators.yes_no import YesNo

    mesh = make_mesh(-1, 1, 1)
    with jax.set_mesh(mesh):
        source, decoder = load_trained(name, mesh, dtype=config.compute.dtype)
    tokenizer = source.tokenizer()
    return YesNo(
        decoder,
        tokenizer,
        mesh,
        prompt,
        identity=name,
        chat=bool(tokenizer.chat_template),
        rows=config.discriminator.rows,
        row_length=config.discriminator.row_length,
    )


@contextlib.contextmanager
def open_writer(config: ConfigDict) -> Iterator:
    """Opens the generator, and frees it at the end."""
    from smallr.methods.planner.writers import ModelWriter

    fields = config.generator
    params = sampling_params(
        "config.generator", temperature=fields.temperature, top_p=fields.top_p, max_tokens=fields.max_tokens
    )
    with contextlib.closing(open_configured(config, fields.model)) as model:
        yield ModelWriter(model, params, config.seed)


def model_identity(name: str) -> object:
    """What tells a model from another one: the content of its files, or its name where it has none here."""
    path = Path(name).expanduser()
    return identity_of(path) if name and path.exists() else name


def prices(fields: ConfigDict) -> Prices:
    """Reads the prices of a generator or discriminator."""
    return Prices(fields.prices.prompt, fields.prices.completion)
