"""Asks agents, language models in roles, on behalf of one row, and reads their replies strictly."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

from smallr.agents.circuit_breaker import CircuitBreaker
from smallr.agents.usage import Usage
from smallr.core.errors import UserError
from smallr.language.base import LanguageModel, Prices
from smallr.sampling.requests import Request, Sample, SamplingParams

T = TypeVar("T")
Reading = tuple[T | None, str]  # the value of a reply, or None and why there is none
# How models and servers say that a request is at fault, not they: asked again it would fail again.
_AT_FAULT = re.compile(
    r"^(400|413|414|422)\b|max_length|max_model_len|context[ _-]?(length|window)|too long", re.IGNORECASE
)


class UnusableError(Exception):
    """Says that a row cannot be finished, whoever is asked: (reason, detail)."""


class UnansweredError(Exception):
    """Says that a request got no reply, for no fault of its own: its row is left open."""


@dataclasses.dataclass(frozen=True)
class Agent:
    """Holds a model in a role, with its sampling parameters and what a million of its tokens cost."""

    model: LanguageModel
    params: SamplingParams
    prices: Prices


@dataclasses.dataclass(frozen=True)
class AgentSpec:
    """Describes an agent that is not open yet.

    Attributes:
      key: agents with equal keys share a model.
      open: opens it.
      params, prices: see `Agent`.
    """

    key: Hashable
    open: Callable[[], LanguageModel]
    params: SamplingParams
    prices: Prices


@contextlib.contextmanager
def open_agents(specs: Mapping[str, AgentSpec]) -> Iterator[dict[str, Agent]]:
    """Opens the agent of each role, equal models once, and closes them at the end.

    Raises:
      UserError: no such model, or a server that is down.
    """
    models: dict[Hashable, LanguageModel] = {}
    with contextlib.ExitStack() as stack:
        for spec in specs.values():
            if spec.key not in models:
                models[spec.key] = spec.open()
                stack.callback(models[spec.key].close)
        yield {role: Agent(models[spec.key], spec.params, spec.prices) for role, spec in specs.items()}


class AgentClient:
    """Asks agents on behalf of one row, and counts.

    Args:
      agents: by role.
      seed: of the run. A request's seed depends on it, the round, the role, the prompt and the numbers of variant and
        attempt alone, so that a cache knows a request again.
      round: of a method that asks the same in several rounds; another one draws anew.
      reasks: how often a reply that cannot be used is asked for again.
      reask_temperature: the least temperature of these requests.
      breaker: of the run.
      usages: all of them count; the run's and the row's own, for instance.
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        *,
        seed: int,
        reasks: int,
        reask_temperature: float,
        breaker: CircuitBreaker,
        usages: Sequence[Usage],
        round: int = 0,
    ):
        self._agents, self._reasks, self._reask_temperature = agents, reasks, reask_temperature
        self._stream = f"{seed}/{round}" if round else f"{seed}"
        self._breaker, self._usages = breaker, usages

    async def samples(self, role: str, prompt: str, n: int = 1, variant: int = 0, attempt: int = 0) -> Sequence[Sample]:
        """Asks for `n` completions of a prompt.

        Raises:
          UnusableError: the request is at fault.
          UnansweredError, CircuitOpenError: there is no reply.
        """
        self._breaker.check()
        agent = self._agents[role]
        (result,) = await agent.model.complete([self._request(agent, role, prompt, n, variant, attempt)])
        if result.error is not None:
            if is_at_fault(result.error):
                raise UnusableError(f"{role}: request refused", result.error)
            self._breaker.failed(result.error)
            raise UnansweredError(result.error)
        self._breaker.succeeded()
        for usage in self._usages:
            usage.count(role, result, is_reask=attempt > 0)
        return [dataclasses.replace(each, text=encodable(each.text)) for each in result.samples]

    def _request(self, agent: Agent, role: str, prompt: str, n: int, variant: int, attempt: int) -> Request:
        if prompt != encodable(prompt):
            raise UnusableError(f"{role}: request refused", "the prompt holds half a character (a lone surrogate)")
        digest = hashlib.sha256(f"{self._stream}:{role}:{variant}:{attempt}:{prompt}".encode()).digest()
        temperature = agent.params.temperature
        params = dataclasses.replace(
            agent.params,
            n=n,
            temperature=max(temperature, self._reask_temperature) if attempt else temperature,
            seed=int.from_bytes(digest[:4], "big") >> 1,
        )
        return Request(messages=({"role": "user", "content": prompt},), params=params)

    async def read(self, role: str, prompt: str, read: Callable[[Sample], Reading[T]], variant: int = 0) -> Reading[T]:
        """Asks until the reply can be read; gives None and the last problem if it never can.

        Args:
          role: of the agent.
          prompt: for it.
          read: reads a reply strictly.
          variant: another number draws another reply to the same prompt.
        """
        problem = ""
        for attempt in range(self._reasks + 1):
            (sample, *_) = await self.samples(role, prompt, variant=variant, attempt=attempt)
            value, problem = read(sample)
            if value is not None:
                return value, ""
        return None, problem


def is_at_fault(error: str) -> bool:
    """Returns whether an error is one of the request itself, which would fail again if it were asked again."""
    return _AT_FAULT.search(error) is not None


def encodable(text: str) -> str:
    """Returns a text with a question mark for each half of a character, which no file in UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def sampling_params(field: str, **fields: object) -> SamplingParams:
    """Returns the sampling parameters of a config.

    Raises:
      UserError: one is out of range; the message names the config's field.
    """
    try:
        return SamplingParams(**fields)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from error
