"""The five agents: who plays them, and how they are asked."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.language.base import LanguageModel, Prices
from smallr.language.opening import open_language_model
from smallr.methods.crv.config import sources, spec_of
from smallr.methods.crv.oracle import PREFIX, Oracle, parse_oracle
from smallr.methods.crv.rows import ROLES
from smallr.sampling.requests import Request, Sample, SamplingParams

T = TypeVar("T")
# How models and servers say that a request is at fault, not they: asked again it would fail again.
_AT_FAULT = re.compile(
    r"^(400|413|414|422)\b|max_length|max_model_len|context[ _-]?(length|window)|too long", re.IGNORECASE
)


class Unusable(Exception):
    """A row that cannot be finished: (reason, detail)."""


class Unanswered(Exception):
    """A request that got no reply, for no fault of its own: the row is left open."""


class OutOfService(Exception):
    """So many requests in a row got no reply that the run stops."""


@dataclasses.dataclass(frozen=True)
class Agent:
    """A model in a role, with its sampling parameters and what a million of its tokens cost."""

    model: LanguageModel
    params: SamplingParams
    prices: Prices


@dataclasses.dataclass
class Tally:
    """What was asked of the agents, by role: `requests`, `cached`, `prompt_tokens`, `completion_tokens`, `reasks`."""

    counts: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)

    def total(self, what: str) -> int:
        """Over all roles."""
        return sum(count for (_, kind), count in self.counts.items() if kind == what)

    def cost(self, agents: Mapping[str, Agent]) -> float:
        """At the agents' prices."""
        return sum(
            self.counts[role, f"{side}_tokens"] * getattr(agent.prices, side) / 1e6
            for role, agent in agents.items()
            for side in ("prompt", "completion")
        )


class Line:
    """Whether requests get through: `max_errors` in a row that do not, end the run."""

    def __init__(self, max_errors: int):
        self._max_errors, self._errors, self._end = max_errors, 0, ""

    def check(self) -> None:
        """Before a request.

        Raises:
          OutOfService: the run is at its end.
        """
        if self._end:
            raise OutOfService(self._end)

    def heard(self) -> None:
        """A reply came."""
        self._errors = 0

    def failed(self, error: str) -> None:
        """None came.

        Raises:
          OutOfService: too many in a row.
        """
        self._errors += 1
        if self._errors >= self._max_errors:
            self._end = self._end or f"{self._errors} requests in a row got no reply; the last one: {error}"
            self.check()


@contextlib.contextmanager
def open_agents(config: ConfigDict) -> Iterator[dict[str, Agent]]:
    """Opens the model of each role, equal ones once, and closes them.

    Raises:
      UserError: no such model, a server that is down, parameters that are out of range.
    """
    models: dict[tuple[str, str], LanguageModel] = {}
    agents = {}
    with contextlib.ExitStack() as stack:
        for role in ROLES:
            if role == "student" and "student" not in sources(config):
                continue
            spec, agent = spec_of(config, role), config.agents[role]
            key = (spec, role if spec.startswith(PREFIX) else "")
            if key not in models:
                models[key] = _open(spec, role, config)
                stack.callback(models[key].close)
            try:
                params = SamplingParams(max_tokens=agent.max_tokens, temperature=agent.temperature, top_p=agent.top_p)
            except ValueError as error:
                raise UserError(f"config.agents.{role}: {error}") from error
            prices = agent.prices if agent.model else config.prices
            agents[role] = Agent(models[key], params, Prices(prices.prompt, prices.completion))
        yield agents


def _open(spec: str, role: str, config: ConfigDict) -> LanguageModel:
    if spec.startswith(PREFIX):
        return Oracle(role, parse_oracle(spec), spec)
    return open_language_model(
        spec,
        cache=config.cache,
        dtype=config.compute.dtype,
        slots=config.compute.slots,
        max_length=config.compute.max_length or None,
        **{**config.server, "api_key_env": config.server.api_key_env or None},
    )


class Asking:
    """Asks agents on behalf of one row, and counts.

    Args:
      agents: by role.
      seed: of the run.
      reasks: times that an unusable reply is asked for again.
      reask_temperature: of these, at least.
      line: of the run.
      tallies: the run's and the row's own; both are counted in.
    """

    def __init__(
        self,
        agents: Mapping[str, Agent],
        *,
        seed: int,
        reasks: int,
        reask_temperature: float,
        line: Line,
        tallies: Sequence[Tally],
    ):
        self._agents, self._seed, self._reasks, self._warmth = agents, seed, reasks, reask_temperature
        self._line, self._tallies = line, tallies

    async def samples(self, role: str, prompt: str, n: int = 1, variant: int = 0, attempt: int = 0) -> Sequence[Sample]:
        """Completions of a prompt. The request depends on the arguments and the config alone, so a cache knows it.

        Raises:
          Unusable: the request is at fault.
          Unanswered, OutOfService: there is no reply.
        """
        self._line.check()
        agent = self._agents[role]
        digest = hashlib.sha256(
            f"{self._seed}:{role}:{variant}:{attempt}:{prompt}".encode("utf-8", "surrogatepass")
        ).digest()
        temperature = max(agent.params.temperature, self._warmth) if attempt else agent.params.temperature
        params = dataclasses.replace(
            agent.params, n=n, temperature=temperature, seed=int.from_bytes(digest[:4], "big") >> 1
        )
        request = Request(messages=({"role": "user", "content": prompt},), params=params)
        (result,) = await agent.model.complete([request])
        if result.error is not None:
            if _AT_FAULT.search(result.error):
                raise Unusable(f"{role}: request refused", result.error)
            self._line.failed(result.error)
            raise Unanswered(result.error)
        self._line.heard()
        for tally in self._tallies:
            tally.counts[role, "requests"] += 1
            tally.counts[role, "cached"] += result.cached
            tally.counts[role, "reasks"] += attempt > 0
            tally.counts[role, "prompt_tokens"] += result.usage.prompt_tokens
            tally.counts[role, "completion_tokens"] += result.usage.completion_tokens
        # Half a character, as some servers send it, could not be written to a data set.
        return [
            dataclasses.replace(each, text=each.text.encode("utf-8", "replace").decode()) for each in result.samples
        ]

    async def read(
        self, role: str, prompt: str, read: Callable[[Sample], tuple[T | None, str]], variant: int = 0
    ) -> tuple[T | None, str]:
        """What an agent replies, asked until the reply can be read; None and the last problem if it never can.

        Args:
          role: who.
          prompt: what.
          read: gives the value of a reply, or None and why there is none.
          variant: another number draws another reply to the same prompt.
        """
        problem = ""
        for attempt in range(self._reasks + 1):
            (sample, *_) = await self.samples(role, prompt, variant=variant, attempt=attempt)
            value, problem = read(sample)
            if value is not None:
                return value, ""
        return None, problem
