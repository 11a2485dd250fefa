"""Defines the config trees of decomposition: of generation by a teacher, and of solving with a student.

A file in `configs/` starts from `generation()` or `solving()`. Configs are locked: a field that does not exist is an error
that names the nearest one.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.data.errors import nearest
from smallr.methods.decomposition.answers import PARSERS
from smallr.methods.decomposition.names import SOLVER, TEACHERS
from smallr.methods.decomposition.prompts import FIELDS
from smallr.methods.decomposition.sequence import Markers


def generation() -> ConfigDict:
    """Returns the fields of generation, not locked."""
    config = _shared("train")
    # Who plays the agents: http(s)://HOST/v1#MODEL, any local model (docs/language_models.md), or oracle:arithmetic, which
    # knows the steps of the built-in problems and errs at the rates behind the question mark.
    config.model = ""
    config.agents = ConfigDict({role: _agent(temperature=0.7) for role in TEACHERS})  # each with its settings
    config.prices = ConfigDict({"prompt": 0.0, "completion": 0.0})  # of config.model
    config.sets = 3  # sets of sub-questions of a problem
    config.verdicts = 3  # samples of the judge on each set
    # Mean usefulness by which a chosen set must be better for a medium gap of a pair, and for a large one.
    config.gaps = (1 / 3, 2 / 3)
    return config


def solving() -> ConfigDict:
    """Returns the fields of solving with a student's sub-questions, not locked."""
    config = _shared("test")
    config.student = ConfigDict()  # writes the sub-questions
    # Who writes the sub-questions: a run of bc, filtered_bc …, or any model that continues such a text.
    config.student.model = ""
    # A run of ilql whose values steer the student; where student.model is empty, the policy that the run began from.
    config.student.advantage = ""
    config.student.beta = 1.0  # nats that an advantage of 1 is worth
    config.student.rows = ""  # in its place: rows with sub-questions, in the published layout or as released responses
    config.student.split = "train"  # of these rows
    config.student.temperature = 0.0  # 0: greedy
    config.student.top_p = 1.0  # draw from the fewest likeliest tokens that hold this share
    config.student.max_tokens = 384  # of all sub-questions
    # Who answers the sub-questions: its model is any language model, or oracle:calculator, which answers one of the
    # built-in problems right exactly if it is well posed. Empty: no accuracy.
    config.solver = _agent(temperature=0.0)
    config.reference = ConfigDict()  # what granularity and BLEU compare with
    # Rows with reference sub-questions, in the published layout; builtin: the steps of the built-in problems; empty: none.
    config.reference.rows = ""
    config.reference.split = "train"
    return config


def _shared(splits: str) -> ConfigDict:
    """Returns what both have."""
    config = ConfigDict()
    config.seed = 0  # of draws
    config.data = ConfigDict()
    # A folder, file or glob, hub id, tfds:name or builtin:name with the columns question and answer. The answer is a
    # number, or GSM8K's solution with a number behind ####.
    config.data.source = "builtin:arithmetic/rationale"
    config.data.splits = splits  # separated by commas; each may be a part: train[:200],test
    # The source's name of each of our columns, e.g. --config.data.columns.question=problem
    config.data.columns = ConfigDict({name: name for name in ("question", "answer")})
    config.markers = ConfigDict({"open": "<QUE>", "close": "</QUE>"})  # around each sub-question
    config.prompts = ConfigDict(dict.fromkeys(FIELDS, ""))  # a file each; empty: smallr's own
    # How final answers are read and compared. published: by the released code's parser, which loses signs and thousands.
    config.parser = "math_verify"  # math_verify | published
    config.reasks = 3  # times that a reply is asked for again if it cannot be used
    config.reask_temperature = 0.7  # of these, at least
    config.concurrency = 16  # problems under way at once
    config.max_errors = 8  # requests in a row without a reply after which the run stops
    config.cache = True  # keep replies in smallr's cache, and take from there what was asked before
    config.compute = ConfigDict()  # of local models
    config.compute.dtype = "bfloat16"  # float32 | bfloat16
    config.compute.decode_slots = 32  # sequences decoded at once
    config.compute.max_length = 0  # tokens of prompt and completion together; 0: the model's context, within reason
    config.server = ConfigDict()  # of servers
    config.server.api_key_env = ""  # the environment variable that holds the key; empty: see docs/language_models.md
    config.server.concurrency = 32  # requests under way at once
    config.server.max_retries = 6  # of a request
    config.server.timeout = 600.0  # seconds of one attempt
    return config


def _agent(*, temperature: float) -> ConfigDict:
    """Returns the fields of one agent."""
    agent = ConfigDict()
    agent.model = ""  # of generation, empty: config.model
    agent.temperature = temperature  # 0: greedy
    agent.top_p = 1.0  # draw from the fewest likeliest tokens that hold this share
    agent.max_tokens = 1024  # of a reply
    # Of a million tokens; used for an agent with a model of its own, else config.prices.
    agent.prices = ConfigDict({"prompt": 0.0, "completion": 0.0})
    return agent


def markers_of(config: ConfigDict) -> Markers:
    """Returns the markers.

    Raises:
      UserError: they cannot be used.
    """
    return Markers(config.markers.open, config.markers.close)


def check(config: ConfigDict) -> None:
    """Refuses values that would fail late.

    Raises:
      UserError: names the field.
    """
    if config.parser not in PARSERS:
        raise UserError(
            f"config.parser = {config.parser!r} must be one of: {', '.join(PARSERS)}{nearest(config.parser, PARSERS)}"
        )
    markers_of(config)
    least = {"reasks": 0, "concurrency": 1, "max_errors": 1}
    if "sets" in config:
        least |= {"sets": 1, "verdicts": 0}
        low, high = config.gaps
        if not 0 <= low <= high:
            raise UserError(f"config.gaps = {tuple(config.gaps)} must be two differences, the smaller one first")
        if missing := [role for role in TEACHERS if not spec_of(config, role)]:
            raise UserError(
                f"config.model is empty, and config.agents.{missing[0]}.model too: name a model, e.g. "
                "--config.model=http://127.0.0.1:8000/v1#MODEL, or oracle:arithmetic for the built-in problems"
            )
    elif bool(config.student.model or config.student.advantage) == bool(config.student.rows):
        raise UserError(
            "give --config.student.model, or --config.student.rows with sub-questions that it has written; a student that "
            "values steer may have --config.student.advantage alone"
        )
    elif not (config.solver.model or config.reference.rows):
        raise UserError(
            "nothing to measure: give --config.solver.model for accuracy, --config.reference.rows for scores without a "
            "solver, or both"
        )
    for name, limit in least.items():
        if config[name] < limit:
            raise UserError(f"config.{name} = {config[name]} must be at least {limit}")


def spec_of(config: ConfigDict, role: str) -> str:
    """Returns the model that plays a role."""
    return config.solver.model if role == SOLVER else config.agents[role].model or config.model


def agent_fields(config: ConfigDict, role: str) -> ConfigDict:
    """Returns the fields of a role."""
    return config.solver if role == SOLVER else config.agents[role]


def identity(config: ConfigDict, roles: tuple[str, ...], prompts_digest: str) -> dict[str, Any]:
    """Gives what must be the same for finished problems to be used again: all that an agent sees or that decides on them."""
    agents = {
        role: {
            "model": spec_of(config, role),
            **{key: agent_fields(config, role)[key] for key in ("temperature", "top_p", "max_tokens")},
        }
        for role in roles
    }
    names = ("seed", "reasks", "reask_temperature", *(name for name in ("sets", "verdicts") if name in config))
    return {
        **{name: config[name] for name in names},
        "markers": config.markers.to_dict(),
        "agents": agents,
        "prompts": prompts_digest,
        "compute": {key: config.compute[key] for key in ("dtype", "max_length")},
    }
