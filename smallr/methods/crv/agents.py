"""Makes the five agents as the config describes them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from ml_collections import ConfigDict

from smallr.agents import agent as general
from smallr.agents.agent import Agent, AgentSpec, sampling_params
from smallr.agents.oracle import PREFIX
from smallr.language.base import LanguageModel, Prices
from smallr.language.opening import open_configured
from smallr.methods.crv.config import sources, spec_of
from smallr.methods.crv.names import ROLES
from smallr.methods.crv.oracle import Oracle, parse_oracle


@contextmanager
def open_agents(config: ConfigDict) -> Iterator[dict[str, Agent]]:
    """Opens the model of each role that the run needs, and closes them at the end.

    Raises:
      UserError: no such model, a server that is down, parameters that are out of range.
    """
    roles = [role for role in ROLES if role != "student" or "student" in sources(config)]
    with general.open_agents({role: _spec(config, role) for role in roles}) as agents:
        yield agents


def _spec(config: ConfigDict, role: str) -> AgentSpec:
    spec, fields = spec_of(config, role), config.agents[role]
    prices = fields.prices if fields.model else config.prices
    return AgentSpec(
        key=(spec, role if spec.startswith(PREFIX) else ""),
        open=functools.partial(_open, spec, role, config),
        params=sampling_params(
            f"config.agents.{role}",
            max_tokens=fields.max_tokens,
            temperature=fields.temperature,
            top_p=fields.top_p,
        ),
        prices=Prices(prices.prompt, prices.completion),
    )


def _open(spec: str, role: str, config: ConfigDict) -> LanguageModel:
    if spec.startswith(PREFIX):
        return Oracle(role, parse_oracle(spec), spec)
    return open_configured(config, spec)
