"""Defines the one interface that methods and evaluations call, whatever answers behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from smallr.sampling.requests import Request, Result, Usage

# Called with a request's index and its result as soon as that is known; one call at a time, from a thread of the model.
Progress = Callable[[int, Result], None]


@dataclasses.dataclass(frozen=True)
class Prices:
    """Holds prices of a million tokens, in any one currency."""

    prompt: float
    completion: float


@dataclasses.dataclass(frozen=True)
class Totals:
    """Counts what a model has done since it was opened.

    Attributes:
      requests: answered or failed, those from the cache included.
      cached: of these, answered from the cache.
      failed: of these, ended in an error.
      usage: tokens of prompts and completions; those of cached results are not counted.
    """

    requests: int = 0
    cached: int = 0
    failed: int = 0
    usage: Usage = dataclasses.field(default_factory=Usage)

    def adding(self, result: Result) -> Totals:
        """Returns these totals and one result more."""
        return Totals(
            self.requests + 1,
            self.cached + result.cached,
            self.failed + (result.error is not None),
            self.usage if result.cached else self.usage + result.usage,
        )

    def cost(self, prices: Prices) -> float:
        """Returns what `usage` costs, in the currency of the prices."""
        return (self.usage.prompt_tokens * prices.prompt + self.usage.completion_tokens * prices.completion) / 1e6


class LanguageModel(Protocol):
    """Completes prompts. Implementations are `local.LocalModel` and `server.ServerModel`; see `opening`."""

    @property
    def name(self) -> str:
        """Returns what results are reported under."""
        ...

    @property
    def totals(self) -> Totals:
        """Returns what was done and used since the model was opened."""
        ...

    async def complete(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[Result]:
        """Completes all requests, many at a time.

        Args:
          requests: any number.
          progress: told of each result as it comes, in any order.

        Returns:
          Their results, in order. A request that cannot be answered has a result with `error`; it takes none of its
          neighbours with it.

        Raises:
          UserError: nothing can be answered as things stand, e.g. the server is down or refuses the key.
        """
        ...

    def complete_sync(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[Result]:
        """Completes as `complete` does, without an event loop; callers with a running one (a notebook) may use it too."""
        ...

    def close(self) -> None:
        """Frees what the model holds: connections, threads, device memory."""
        ...
