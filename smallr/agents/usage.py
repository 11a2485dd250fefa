"""Counts what was asked of agents and what it costs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smallr.agents.agent import Agent
    from smallr.sampling.requests import Result

COUNTS = ("requests", "cached", "reasks", "prompt_tokens", "completion_tokens")


@dataclasses.dataclass
class Usage:
    """Counts by role and by one of COUNTS; `reasks` are requests that repeat one whose reply could not be used."""

    counts: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)

    def count(self, role: str, result: Result, *, is_reask: bool) -> None:
        """Counts an answered request."""
        for name, number in (
            ("requests", 1),
            ("cached", result.cached),
            ("reasks", is_reask),
            ("prompt_tokens", result.usage.prompt_tokens),
            ("completion_tokens", result.usage.completion_tokens),
        ):
            self.counts[role, name] += number

    def add(self, by_role: Mapping[str, Mapping[str, int]]) -> None:
        """Adds counts as `by_role` gives them."""
        for role, counts in by_role.items():
            for name, number in counts.items():
                self.counts[role, name] += number

    def by_role(self, roles: Iterable[str]) -> dict[str, dict[str, int]]:
        """Returns all counts of some roles, in JSON's types."""
        return {role: {name: int(self.counts[role, name]) for name in COUNTS} for role in roles}

    def total(self, name: str) -> int:
        """Sums one of COUNTS over all roles."""
        return sum(number for (_, each), number in self.counts.items() if each == name)

    def cost(self, agents: Mapping[str, Agent]) -> float:
        """Gives the cost at the agents' prices, cached replies included."""
        return sum(
            self.counts[role, f"{kind}_tokens"] * getattr(agent.prices, kind) / 1e6
            for role, agent in agents.items()
            for kind in ("prompt", "completion")
        )
