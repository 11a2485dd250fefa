"""A small world of questions, and agents with scripted replies."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
from ml_collections import ConfigDict

from smallr.agents.agent import Agent, AgentClient
from smallr.agents.circuit_breaker import CircuitBreaker
from smallr.agents.usage import Usage
from smallr.language.base import Prices
from smallr.methods.crv.checking import RuleCheck
from smallr.methods.crv.config import base
from smallr.methods.crv.names import ROLES
from smallr.methods.crv.prompts import load_prompts
from smallr.methods.crv.row_worker import Method, RowWorker
from smallr.methods.crv.rows import TeacherRow
from smallr.sampling.requests import SamplingParams
from tests.evals.fakes import FakeModel

ROW = TeacherRow("train", 0, "here", "What is 2 + 3 * 4?", "14", "3 * 4 = 12, so the answer is \\boxed{14}.")
Replies = Callable[[str], str] | list[str] | str


def tagged(prompt: str, tag: str) -> str:
    """What stands in a tag of a prompt."""
    return re.findall(rf"<{tag}>\n(.*?)\n</{tag}>", prompt, re.DOTALL)[-1]


class Scripted(FakeModel):
    """Replies from a list in turn, by a function of the prompt, or always the same; a list that is used up is an error."""

    def __init__(self, name: str, replies: Replies):
        self.prompts: list[str] = []
        self._replies = replies
        super().__init__(self._next)
        self.name = name

    def _next(self, prompt: str) -> str:
        self.prompts.append(prompt)
        if isinstance(self._replies, list):
            assert self._replies, f"{self.name} is asked once too often: {prompt}"
            return self._replies.pop(0)
        return self._replies if isinstance(self._replies, str) else self._replies(prompt)


def worker(
    row: TeacherRow = ROW,
    *,
    prompts: Mapping[str, str] | None = None,
    check: str = "auto",
    reasks: int = 1,
    **method: Any,
) -> Callable[..., tuple[dict[str, Any], dict[str, Scripted]]]:
    """Runs one row with the replies of each role; gives the output row and the models, to see what they were asked."""

    def run(**replies: Replies) -> tuple[dict[str, Any], dict[str, Scripted]]:
        models = {role: Scripted(f"the {role}", replies.get(role, [])) for role in ROLES}
        agents = {role: Agent(model, SamplingParams(), Prices(1.0, 10.0)) for role, model in models.items()}
        fields = {"max_retries": 3, "form": "auto", "box": True, "recheck": False, "verify_original": False}
        fields |= {"count": 0, "sources": ("teacher", "student", "injected"), "samples": 2, **method}
        rules = RuleCheck(check)
        setting = Method(
            prompts=load_prompts(prompts or {}),
            rules=rules,
            student="7 parameters",
            models={role: model.name for role, model in models.items()},
            **fields,
        )
        usage = Usage()
        client = AgentClient(
            agents, seed=0, reasks=reasks, reask_temperature=0.7, breaker=CircuitBreaker(3), usages=(usage,)
        )
        out = asyncio.run(RowWorker(row, setting, client, usage).run())
        rules.close()
        return out, models

    return run


def write_rows(path: Path, rows: list[dict[str, Any]], splits: tuple[str, ...] = ("train",)) -> str:
    """The rows as a data set on disk, the same in every split but for a word of the question."""
    parts = {
        split: [{**row, "question": row["question"] + (f" ({split})" if split != "train" else "")} for row in rows]
        for split in splits
    }
    datasets.DatasetDict({split: datasets.Dataset.from_list(part) for split, part in parts.items()}).save_to_disk(path)
    return str(path)


def small(source: str, model: str = "oracle:arithmetic", **changes: Any) -> ConfigDict:
    """A config for tests."""
    config = base()
    config.data.source, config.model = source, model
    config.update_from_flattened_dict(changes)
    config.lock()
    return config
