"""Opens the agents as a config describes them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ml_collections import ConfigDict

from smallr.agents import agent as general
from smallr.agents.agent import Agent, AgentSpec, sampling_params
from smallr.agents.oracle import PREFIX, read_oracle
from smallr.language.base import LanguageModel, Prices
from smallr.language.opening import open_configured
from smallr.methods.decomposition.config import agent_fields, spec_of
from smallr.methods.decomposition.names import SOLVER
from smallr.methods.decomposition.oracle import CALCULATOR, CalculatorOptions, Oracle, OracleOptions


@contextmanager
def open_agents(config: ConfigDict, roles: Sequence[str]) -> Iterator[dict[str, Agent]]:
    """Opens the model of each role, and closes them at the end.

    Raises:
      UserError: no such model, a server that is down, parameters that are out of range.
    """
    with general.open_agents({role: _spec(config, role) for role in roles}) as agents:
        yield agents


def _spec(config: ConfigDict, role: str) -> AgentSpec:
    spec, fields = spec_of(config, role), agent_fields(config, role)
    prices = fields.prices if fields.model else config.prices
    where = "config.solver" if role == SOLVER else f"config.agents.{role}"
    return AgentSpec(
        key=(spec, role if spec.startswith(PREFIX) else ""),
        open=functools.partial(_open, spec, role, config),
        params=sampling_params(where, max_tokens=fields.max_tokens, temperature=fields.temperature, top_p=fields.top_p),
        prices=Prices(prices.prompt, prices.completion),
    )


def _open(spec: str, role: str, config: ConfigDict) -> LanguageModel:
    if not spec.startswith(PREFIX):
        return open_configured(config, spec)
    if role == SOLVER:
        read_oracle(spec, CalculatorOptions, CALCULATOR)
        return Oracle(role, OracleOptions(), spec)
    return Oracle(role, read_oracle(spec, OracleOptions), spec)
