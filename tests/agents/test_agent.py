"""Agents: what a request depends on, what is counted, and what each kind of failure comes to."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from smallr.agents.agent import (
    Agent,
    AgentClient,
    AgentSpec,
    UnansweredError,
    UnusableError,
    encodable,
    open_agents,
    sampling_params,
)
from smallr.agents.circuit_breaker import CircuitBreaker, CircuitOpenError
from smallr.agents.usage import COUNTS, Usage
from smallr.core.errors import UserError
from smallr.language.base import Prices
from smallr.sampling.requests import SamplingParams
from tests.evals.fakes import FakeModel


def number(sample):
    """A strict reading: a number, or what is wrong."""
    return (int(sample.text), "") if sample.text.isdigit() else (None, f"no number: {sample.text}")


def client(replies, *, usages=(), breaker=None, **options) -> tuple[AgentClient, FakeModel]:
    """One agent, `judge`, with replies in turn; a ValueError's text is an error of the request."""
    replies = iter(replies)

    def answer(_: str) -> str:
        reply = next(replies)
        if isinstance(reply, Exception):
            raise reply
        return reply

    model = FakeModel(answer)
    agents = {"judge": Agent(model, SamplingParams(temperature=0.2), Prices(1.0, 10.0))}
    settings = {"seed": 0, "reasks": 2, "reask_temperature": 0.7, "breaker": breaker or CircuitBreaker(2), **options}
    return AgentClient(agents, usages=usages, **settings), model


def ask(asked: AgentClient, prompt: str = "How many?", **options):
    return asyncio.run(asked.read("judge", prompt, number, **options))


def test_a_reply_is_asked_for_until_it_can_be_read_and_all_is_counted():
    own, run = Usage(), Usage()
    asked, model = client(["many", "", "7"], usages=(own, run))
    assert ask(asked) == (7, "")
    assert [request.params.temperature for request in model.requests] == [0.2, 0.7, 0.7]
    assert len({request.params.seed for request in model.requests}) == 3
    expected = {"requests": 3, "cached": 0, "reasks": 2, "prompt_tokens": 6, "completion_tokens": 2}
    assert own.by_role(["judge"]) == run.by_role(["judge"]) == {"judge": expected}
    assert [own.total(name) for name in COUNTS] == list(expected.values())
    agents = {"judge": Agent(model, SamplingParams(), Prices(1.0, 10.0))}
    assert own.cost(agents) == pytest.approx((6 * 1 + 2 * 10) / 1e6)
    own.add(run.by_role(["judge"]))
    assert own.total("requests") == 6
    asked, _ = client(["many", "few", "none"])
    assert ask(asked) == (None, "no number: none")


def test_a_request_depends_on_seed_round_prompt_and_variant_alone():
    def seed(prompt="How many?", variant=0, **options) -> int:
        asked, model = client(["7"], **options)
        ask(asked, prompt, variant=variant)
        return model.requests[0].params.seed

    others = [seed(seed=1), seed(round=1), seed(round=2), seed("How much?"), seed(variant=1)]
    assert len({seed(), *others}) == 6
    assert seed() == seed(reasks=5)
    assert seed(round=1) == seed(round=1)


def test_failures_are_told_apart():
    for error in ("400: no", "the prompt has 9 tokens, over the 8 of max_length", "413: too large"):
        breaker = CircuitBreaker(1)
        asked, _ = client([ValueError(error)], breaker=breaker)
        with pytest.raises(UnusableError, match="judge: request refused"):
            ask(asked)
        breaker.check()
    asked, model = client([], breaker=CircuitBreaker(1))
    with pytest.raises(UnusableError, match="half a character"):
        ask(asked, "cut \ud83d")
    assert model.requests == []
    asked, _ = client(["7 \ud83d"], reasks=0)
    assert ask(asked) == (None, "no number: 7 ?")
    assert encodable("a\ud83d\U0001f600") == "a?\U0001f600"


def test_the_breaker_opens_after_failures_in_a_row_and_stays_open():
    asked, model = client([ValueError("500: a"), "7", ValueError("500: b"), ValueError("500: c"), "8"])
    with pytest.raises(UnansweredError, match="500: a"):
        ask(asked)
    assert ask(asked) == (7, "")
    with pytest.raises(UnansweredError):
        ask(asked)
    for _ in range(2):
        with pytest.raises(CircuitOpenError, match="2 requests in a row got no reply; the last one: 500: c"):
            ask(asked)
    assert len(model.requests) == 4


def test_equal_models_are_opened_once_and_all_are_closed():
    opened = []

    def open_one() -> FakeModel:
        opened.append(FakeModel(str))
        return opened[-1]

    spec = AgentSpec("a", open_one, SamplingParams(), Prices(0, 0))
    specs = {"critic": spec, "judge": spec, "writer": dataclasses.replace(spec, key="b")}
    with open_agents(specs) as agents:
        assert agents["critic"].model is agents["judge"].model is not agents["writer"].model
    assert [model.closed for model in opened] == [True, True]
    with pytest.raises(ZeroDivisionError), open_agents({"a": spec, "b": dataclasses.replace(spec, key=1, open=fail)}):
        pass
    assert opened[-1].closed


def fail() -> FakeModel:
    raise ZeroDivisionError


def test_bad_parameters_name_the_field():
    assert sampling_params("config.a", temperature=0.5).temperature == 0.5
    with pytest.raises(UserError, match=r"config\.a: .*top_p"):
        sampling_params("config.a", top_p=2)
