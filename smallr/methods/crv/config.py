"""Defines the config tree of a CRV run: every field, its default and its meaning.

A file in `configs/` starts from `base()`. Configs are locked: a field that does not exist is an error that names the
nearest one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.data.errors import nearest
from smallr.methods.crv.checking import KINDS
from smallr.methods.crv.formats import FORMATS
from smallr.methods.crv.grades import fit_of, selection_of
from smallr.methods.crv.names import CRITICS, INCORRECT_SOURCES, ROLES
from smallr.methods.crv.prompts import FIELDS

_AGENTS: Mapping[str, tuple[float, int]] = {  # temperature, max_tokens
    "critic": (0.0, 16),
    "rethinker": (0.7, 1024),
    "verifier": (0.0, 1024),
    "student": (1.0, 512),
    "injector": (0.7, 1024),
}


def base() -> ConfigDict:
    """Returns all fields, not locked."""
    config = ConfigDict()
    config.seed = 0  # of draws
    _add_data(config)
    config.student = "about 0.1 billion parameters"  # the size of the student, as prompts state it
    # Who plays the agents: http(s)://HOST/v1#MODEL, any local model (see docs/language_models.md), or oracle:arithmetic.
    config.model = ""
    config.agents = ConfigDict()
    for role, (temperature, max_tokens) in _AGENTS.items():
        agent = config.agents[role] = ConfigDict()
        agent.model = ""  # empty: config.model
        agent.temperature = temperature  # 0: greedy
        agent.top_p = 1.0  # draw from the fewest likeliest tokens that hold this share
        agent.max_tokens = max_tokens  # of a reply
        # Of a million tokens; used for an agent with a model of its own, else config.prices.
        agent.prices = ConfigDict({"prompt": 0.0, "completion": 0.0})
    config.prices = ConfigDict({"prompt": 0.0, "completion": 0.0})  # of config.model
    config.prompts = ConfigDict(dict.fromkeys(FIELDS, ""))  # a file each; empty: smallr/methods/crv/prompts/NAME.txt

    _add_critic(config)
    config.reasks = 3  # times that a reply is asked for again if it cannot be used
    config.reask_temperature = 0.7  # of these, at least
    config.max_retries = 3  # attempts at a rationale after the first
    config.check = "auto"  # how answers are compared: auto | number | math | option | words | text | none
    config.format = "auto"  # of rationales: plain | think | sky_t1; auto: that of the teacher's
    config.box = True  # put the answer of a rationale without a box into one
    config.recheck = False  # ask the critic about the rewritten rationales too
    config.verify_original = False  # ask the verifier about all rationales of the teacher too

    config.incorrect = ConfigDict()
    config.incorrect.count = 2  # incorrect rationales of a verified row; 0: none
    # Where they come from, in order: a teacher's rationale with a wrong answer, samples of the student with a wrong
    # answer, an error put into the verified rationale by the injector.
    config.incorrect.sources = ",".join(INCORRECT_SOURCES)
    config.incorrect.samples = 4  # of the student

    config.concurrency = 16  # rows under way at once
    config.max_errors = 8  # requests in a row without a reply after which the run stops
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
    return config


def _add_data(config: ConfigDict) -> None:
    config.data = ConfigDict()
    # A folder, file or glob, hub id, tfds:name or builtin:name with the columns question, answer, rationale and, if
    # there is one, source. Without a column `answer`, or where it is empty, the verifier alone decides.
    config.data.source = "builtin:arithmetic/teacher"
    config.data.splits = "train"  # separated by commas; each may be a part: train[:200],test
    # The source's name of each of our columns, e.g. --config.data.columns.rationale=palm_rationale
    config.data.columns = ConfigDict({name: name for name in ("question", "answer", "rationale")})
    # Evaluation sets, separated by commas, each SOURCE or SOURCE@SPLIT: their questions are left out before anything is
    # asked about them.
    config.data.holdout = ""


def _add_critic(config: ConfigDict) -> None:
    # What the critic says: words (easy, medium or hard) | grades (verbosity and cognitive difficulty from 0 to 9, from which
    # the word follows).
    config.critic = "words"
    config.grades = ConfigDict()  # that fit the student
    config.grades.verbosity = (3, 5)  # lowest and highest: below it a rationale is easy, above it hard
    config.grades.cognitive_difficulty = 5  # highest: above it a rationale is hard
    # Which verified rows go into the data set `selected`, by the grades of the rationale that is trained on; needs
    # critic=grades and recheck. Empty: all.
    config.select = ConfigDict()
    config.select.verbosity = ()  # lowest and highest
    config.select.cognitive_difficulty = ()  # lowest and highest
    config.select.edges = ()  # bins of cognitive difficulty, each to below the next, such as 0,3,6,10
    config.select.shares = ()  # of the bins; empty: equal ones
    config.select.match = False  # verbosity must lie in the bin of cognitive difficulty


def check(config: ConfigDict) -> None:
    """Refuses values that would fail late.

    Raises:
      UserError: names the field.
    """
    for name, choices in (("check", KINDS), ("format", FORMATS)):
        if config[name] not in (*choices, "auto"):
            raise UserError(
                f"config.{name} = {config[name]!r} must be one of: {', '.join(dict.fromkeys(('auto', *choices)))}"
                f"{nearest(config[name], choices)}"
            )
    if config.critic not in CRITICS:
        raise UserError(f"config.critic = {config.critic!r} must be one of: {', '.join(CRITICS)}")
    fit_of(config.grades)
    if selection_of(config.select) is not None and not (config.critic == "grades" and config.recheck):
        raise UserError(
            "config.select: rows are selected by the grades of the rewritten rationales; set config.critic=grades and "
            "config.recheck=True"
        )
    for source in sources(config):
        if source not in INCORRECT_SOURCES:
            raise UserError(
                f"config.incorrect.sources: {source!r} must be one of: {', '.join(INCORRECT_SOURCES)}"
                f"{nearest(source, INCORRECT_SOURCES)}"
            )
    least = {
        "reasks": (config.reasks, 0),
        "max_retries": (config.max_retries, 0),
        "concurrency": (config.concurrency, 1),
        "max_errors": (config.max_errors, 1),
        "incorrect.count": (config.incorrect.count, 0),
        "incorrect.samples": (config.incorrect.samples, 1),
    }
    for name, (value, limit) in least.items():
        if value < limit:
            raise UserError(f"config.{name} = {value} must be at least {limit}")
    for role in ROLES:
        if not spec_of(config, role) and (role != "student" or "student" in sources(config)):
            raise UserError(
                "config.model is empty: name the model that plays the agents, e.g. "
                "--config.model=http://127.0.0.1:8000/v1#MODEL, a local model, or oracle:arithmetic for built-in rows"
            )


def sources(config: ConfigDict) -> list[str]:
    """Returns where incorrect rationales come from, in order."""
    return [name.strip() for name in config.incorrect.sources.split(",") if name.strip()]


def spec_of(config: ConfigDict, role: str) -> str:
    """Returns the model that plays a role."""
    return config.agents[role].model or config.model


def identity(config: ConfigDict, prompts_digest: str) -> dict[str, Any]:
    """Gives what must be the same for finished rows to be used again: all that an agent sees or that decides on a row."""
    names = (
        *("seed", "student", "reasks", "reask_temperature", "max_retries", "check", "format", "box", "recheck"),
        *("verify_original", "critic"),
    )
    agents = {
        role: {
            "model": spec_of(config, role),
            **{key: config.agents[role][key] for key in ("temperature", "top_p", "max_tokens")},
        }
        for role in ROLES
    }
    return {
        **{name: config[name] for name in names},
        "incorrect": config.incorrect.to_dict(),
        "grades": config.grades.to_dict() if config.critic == "grades" else {},
        "agents": agents,
        "prompts": prompts_digest,
        "compute": {key: config.compute[key] for key in ("dtype", "max_length")},
    }
