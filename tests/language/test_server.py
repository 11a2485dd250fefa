"""The client of OpenAI-compatible servers against a real one that misbehaves; requests are counted."""

from __future__ import annotations

import asyncio
import email.utils
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from smallr.core.errors import UserError
from smallr.language.base import Prices
from smallr.language.retrying import Backoff, retry_after
from smallr.language.server import ServerModel
from smallr.language.wire import Malformed, parse_reply, wire_seed
from smallr.sampling.requests import Request, SamplingParams, Usage
from tests.language.faulty import Body, Handler, asked, error, reply, serving

FAST = Backoff(first=0.01, longest=0.02)


def chat(text: str, **params: Any) -> Request:
    return Request(messages=({"role": "user", "content": text},), params=SamplingParams(**params))


@pytest.fixture
def open_at() -> Iterator[Callable[..., ServerModel]]:
    models = []

    def make(url: str, name: str | None = "m", **options: Any) -> ServerModel:
        models.append(ServerModel(url, name, **{"backoff": FAST, "max_retries": 3, **options}))
        return models[-1]

    yield make
    for model in models:
        model.close()


def first_then_good(fault: Callable[[Handler], None], times: int = 1) -> Callable[[Handler, int, Body], None]:
    return lambda handler, number, body: fault(handler) if number < times else handler.good(body)


FAULTS = {
    "429": lambda handler: handler.send(429, error("slow down")),
    "500": lambda handler: handler.send(500, error("oops")),
    "503 in HTML": lambda handler: handler.send(503, "<html>down</html>", "text/html"),
    "dropped at once": lambda handler: handler.drop(),
    "dropped in the middle": lambda handler: handler.drop(after=20),
    "truncated JSON": lambda handler: handler.send(200, '{"choices": [{"message": {"cont'),
    "no JSON object": lambda handler: handler.send(200, "[1, 2]"),
    "empty choices": lambda handler: handler.send(200, {"choices": []}),
    "null choices": lambda handler: handler.send(200, {"choices": None}),
    "choice without message": lambda handler: handler.send(200, {"choices": [{"finish_reason": "stop"}]}),
    "unfinished": lambda handler: handler.send(200, reply("x", finish="abort")),
    "error with status 200": lambda handler: handler.send(200, error("upstream", code=502)),
    "a page instead of JSON": lambda handler: handler.send(200, "<html>sign in</html>", "text/html"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_sent_again(fault, open_at):
    with serving(first_then_good(FAULTS[fault], times=2)) as server:
        (result,) = open_at(server.url).complete_sync([chat("hello")])
    assert (result.error, result.samples[0].text) == (None, "echo hello")
    assert result.usage == Usage(3, 2)
    assert len(server.bodies) == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lasting_fault_is_an_error_of_its_request_alone(fault, open_at):
    def behave(handler: Handler, _: int, body: Body) -> None:
        FAULTS[fault](handler) if asked(body) == "bad" else handler.good(body)

    seen = []
    with serving(behave) as server:
        model = open_at(server.url)
        requests = [chat("a"), chat("bad"), chat("b")]
        a, bad, b = model.complete_sync(requests, progress=lambda place, result: seen.append((place, result)))
    assert [a.samples[0].text, b.samples[0].text] == ["echo a", "echo b"]
    assert not bad.samples
    assert bad.error.endswith("; 4 attempts")
    assert server.counts() == {"a": 1, "bad": 4, "b": 1}
    assert sorted(seen, key=lambda pair: pair[0]) == [(0, a), (1, bad), (2, b)]
    assert (model.totals.requests, model.totals.failed, model.totals.usage) == (3, 1, Usage(6, 4))
    assert model.totals.cost(Prices(prompt=1e6, completion=10e6)) == 46.0


def test_content_type_is_not_what_makes_a_reply(open_at):
    with serving(lambda handler, _, body: handler.send(200, reply("fine"), "text/plain")) as server:
        (result,) = open_at(server.url).complete_sync([chat("hello")])
    assert result.samples[0].text == "fine"


@pytest.mark.parametrize("header", [{"Retry_After": "0.3"}, {"retry_after_ms": "300"}], ids=["seconds", "milliseconds"])
def test_retry_after_is_waited_for(header, open_at):
    times = []

    def behave(handler: Handler, number: int, body: Body) -> None:
        times.append(time.monotonic())
        handler.good(body) if number else handler.send(429, error("slow down"), **header)

    with serving(behave) as server:
        (result,) = open_at(server.url).complete_sync([chat("x")])
    assert result.error is None
    assert times[1] - times[0] >= 0.3


def test_retry_after_reads_numbers_dates_and_nonsense():
    assert retry_after({"retry-after": "7"}) == 7.0
    assert retry_after({"retry-after": email.utils.formatdate(time.time() + 50, usegmt=True)}) == pytest.approx(
        50, abs=2
    )
    assert retry_after({"retry-after": email.utils.formatdate(time.time() - 50, usegmt=True)}) == 0.0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


def test_waits_double_up_to_the_longest_with_jitter():
    backoff = Backoff(first=1.0, longest=5.0, patience=60.0)
    for attempt, most in enumerate([1, 2, 4, 5, 5]):
        waits = {backoff.delay(attempt, None) for _ in range(50)}
        assert most / 2 <= min(waits) < max(waits) <= most
    assert 10 <= backoff.delay(0, 10.0) <= 10.1
    assert backoff.delay(0, 61.0) is None


def test_a_wait_beyond_patience_is_not_waited(open_at):
    with serving(lambda handler, _, body: handler.send(429, error("tomorrow"), Retry_After="86400")) as server:
        (result,) = open_at(server.url).complete_sync([chat("x")])
    assert result.error == "429: tomorrow; the server wants a wait of 86400 s"
    assert len(server.bodies) == 1


@pytest.mark.parametrize("fault", ["silent", "trickle"])
def test_slow_replies_time_out_and_are_sent_again(fault, open_at):
    hold = threading.Event()

    def behave(handler: Handler, number: int, body: Body) -> None:
        if number:
            handler.good(body)
        elif fault == "silent":
            hold.wait(5)
            handler.drop()
        else:
            handler.trickle(5)

    with serving(behave) as server:
        (late,) = open_at(server.url, timeout=0.5, max_retries=0).complete_sync([chat("x")])
        server.bodies.clear()
        (result,) = open_at(server.url, timeout=0.5).complete_sync([chat("x")])
        hold.set()
    assert late.error == "time-out: no whole reply within 0.5 s; 1 attempts"
    assert result.samples[0].text == "echo x"
    assert len(server.bodies) == 2


def test_silence_has_a_limit_of_its_own(open_at):
    hold = threading.Event()

    def behave(handler: Handler, number: int, body: Body) -> None:
        hold.wait(5)
        handler.drop()

    with serving(behave) as server:
        model = open_at(server.url, timeout=60, idle_timeout=0.1, max_retries=1)
        (result,) = model.complete_sync([chat("x")])
        hold.set()
    assert "time-out" in result.error
    assert len(server.bodies) == 2


def test_what_the_request_is_at_fault_for_is_not_sent_again(open_at):
    def behave(handler: Handler, _: int, body: Body) -> None:
        if asked(body) == "long":
            handler.send(400, error("maximum context length is 5", code="context_length_exceeded"))
        elif asked(body) == "withheld":
            handler.send(200, reply("", finish="content_filter"))
        else:
            handler.good(body)

    with serving(behave) as server:
        results = open_at(server.url).complete_sync([chat("long"), chat("withheld"), chat("fine")])
    assert [result.error for result in results] == [
        "400: maximum context length is 5",
        "the server withheld the completion (content_filter)",
        None,
    ]
    assert server.counts() == {"long": 1, "withheld": 1, "fine": 1}


def test_no_more_requests_at_once_than_allowed_and_order_kept(open_at):
    now, most, lock, four = [0], [0], threading.Lock(), threading.Barrier(4, timeout=10)

    def behave(handler: Handler, number: int, body: Body) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        four.wait()  # breaks if fewer come at once
        with lock:
            now[0] -= 1
        handler.good(body)

    with serving(behave) as server:
        model = open_at(server.url, concurrency=4)

        async def two_callers() -> list[list[Any]]:
            return await asyncio.gather(
                model.complete([chat(f"a{i}") for i in range(12)]), model.complete([chat(f"b{i}") for i in range(12)])
            )

        a, b = asyncio.run(two_callers())
    assert [result.samples[0].text for result in a + b] == [f"echo {x}{i}" for x in "ab" for i in range(12)]
    assert most[0] == 4


def test_parameters_go_where_servers_look_for_them(open_at):
    with serving() as server:
        model = open_at(server.url)
        everything = {
            "temperature": 0.5,
            "top_k": 7,
            "top_p": 0.9,
            "min_p": 0.1,
            "n": 2,
            "seed": 3,
            "stop": ("\n", "Q:"),
        }
        everything |= {"stop_token_ids": (2, 5), "ignore_eos": True, "max_tokens": 11}
        plain = Request(prompt="once", params=SamplingParams(**everything))
        one, two, three = model.complete_sync([plain, chat("x"), Request(prompt=(1, 2))])
    assert [len(result.samples) for result in (one, two, three)] == [2, 1, 1]
    bodies = {str(asked(body)): body for body in server.bodies}
    everything["seed"] = wire_seed(plain, 0)
    assert bodies["once"] == {"model": "m", "prompt": "once", **everything} | {
        "stop": ["\n", "Q:"],
        "stop_token_ids": [2, 5],
    }
    message = {"role": "user", "content": "x"}
    assert bodies["x"] == {"model": "m", "messages": [message], "temperature": 0.0, "max_tokens": 256}
    assert bodies["[1, 2]"]["prompt"] == [1, 2]


def test_reasons_to_finish_are_ours(open_at):
    reasons = {"stop": "stop", "length": "length", "eos": "stop", "max_tokens": "length", "end_turn": "stop"}
    with serving(lambda handler, _, body: handler.send(200, reply("t", finish=asked(body)))) as server:
        results = open_at(server.url).complete_sync([chat(reason) for reason in reasons])
    assert [result.samples[0].finish_reason for result in results] == list(reasons.values())


def test_logprobs_of_chat_and_text(open_at):
    top = [{"token": "b", "logprob": -0.5}, {"token": "a", "logprob": -1.0}]

    def behave(handler: Handler, _: int, body: Body) -> None:
        good = reply("a", chat="messages" in body)
        if "messages" in body:
            assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
            good["choices"][0]["logprobs"] = {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": top}]}
        else:
            assert body["logprobs"] == 2
            tops = [{"a": -1.0, "b": -0.5, "c": -3.0}]
            good["choices"][0]["logprobs"] = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": tops}
        handler.send(200, good)

    with serving(behave) as server:
        results = open_at(server.url).complete_sync(
            [chat("x", logprobs=2), Request(prompt="x", params=SamplingParams(logprobs=2))]
        )
    for result in results:
        (token,) = result.samples[0].logprobs
        assert (token.token_id, token.token, token.logprob) == (None, "a", -1.0)
        assert token.top == (("b", -0.5), ("a", -1.0))


def test_logprobs_that_are_not_given_are_an_error(open_at):
    with serving() as server:
        (result,) = open_at(server.url).complete_sync([chat("x", logprobs=0)])
    assert "gave no log-probs" in result.error
    assert len(server.bodies) == 1


def test_an_empty_completion_has_no_logprobs_and_others_are_numbers(open_at):
    def choice(text: str, logprob: float | None) -> dict[str, Any]:
        logprobs = None if logprob is None else {"tokens": [text], "token_logprobs": [logprob]}
        return {"index": 0, "text": text, "finish_reason": "stop", "logprobs": logprobs}

    request = Request(prompt="x", params=SamplingParams(logprobs=0))
    (sample,) = parse_reply({"choices": [choice("", None)]}, request).samples
    assert sample.logprobs == ()  # an evaluation does not take it for a server that gives none
    with pytest.raises(Malformed, match="NaN"):
        parse_reply({"choices": [choice("a", math.nan)]}, request)


def _refuses_n(handler: Handler, _: int, body: Body) -> None:
    if body.get("n", 1) > 1:
        handler.send(400, error("only one choice"))
    else:
        handler.send(200, reply(f"seed {body.get('seed')}"))


def _seeds_of_three() -> list[str]:
    single = chat("x", temperature=1.0, seed=5)
    return [f"seed {wire_seed(single, sample)}" for sample in range(3)]


def test_n_samples_from_a_server_that_refuses_n(open_at):
    with serving(_refuses_n) as server:
        model = open_at(server.url, concurrency=2)
        (result,) = model.complete_sync([chat("x", n=3, temperature=1.0, seed=5)])
        assert [sample.text for sample in result.samples] == _seeds_of_three()
        assert result.usage == Usage(9, 6)
        assert len(server.bodies) == 1 + 3
        model.complete_sync([chat("y", n=4, temperature=1.0)])  # now it is known
        assert len(server.bodies) == 4 + 4


def test_n_samples_from_a_server_that_passes_n_over(open_at):
    with serving(lambda handler, _, body: handler.send(200, reply(f"seed {body.get('seed')}"))) as server:
        (result,) = open_at(server.url).complete_sync([chat("x", n=3, temperature=1.0, seed=5)])
    assert [sample.text for sample in result.samples] == _seeds_of_three()
    assert len(server.bodies) == 3


def test_seeds_for_servers_differ_by_seed_round_prompt_and_sample(open_at):
    """Other servers know no rounds, and give the same random numbers to all prompts with one seed."""
    requests = [chat("x", seed=5), chat("x", seed=6), chat("x", seed=5, round=1), chat("y", seed=5)]
    seeds = [wire_seed(request, sample) for request in requests for sample in range(2)]
    assert len(set(seeds)) == 8
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert wire_seed(chat("x"), 0) is None
    with serving() as server:
        open_at(server.url).complete_sync(requests)
    assert sorted(body["seed"] for body in server.bodies) == sorted(seeds[::2])
    assert not any("round" in body for body in server.bodies)


def test_a_prompt_that_cannot_be_sent_is_an_error_of_its_request(open_at):
    with serving() as server:
        bad, good = open_at(server.url).complete_sync([chat("cut emoji \ud83d"), chat("x")])
    assert "surrogates" in bad.error
    assert good.samples[0].text == "echo x"


def test_a_bad_request_with_n_says_what_was_bad(open_at):
    with serving(lambda handler, _, body: handler.send(400, error("too long"))) as server:
        (result,) = open_at(server.url).complete_sync([chat("x", n=3)])
    assert result.error == "400: too long"
    assert len(server.bodies) == 2


def test_servers_that_want_the_other_name_for_the_limit(open_at):
    def behave(handler: Handler, _: int, body: Body) -> None:
        if "max_tokens" in body:
            handler.send(400, error("'max_tokens' is not supported: use 'max_completion_tokens'", param="max_tokens"))
        else:
            handler.good(body)

    with serving(behave) as server:
        model = open_at(server.url)
        assert model.complete_sync([chat("x", max_tokens=9)])[0].error is None
        assert server.bodies[-1]["max_completion_tokens"] == 9
        model.complete_sync([chat("y")])
        assert len(server.bodies) == 3


def test_a_server_that_is_down(open_at):
    with serving() as server:
        url = server.url
    with pytest.raises(UserError, match=r"no server answers at http://127\.0\.0\.1:\d+/v1.*start it"):
        open_at(url, max_retries=100, backoff=Backoff(first=100)).complete_sync([chat("x")])


def test_unknown_models_are_named_with_those_that_are_there(open_at):
    with serving() as server:
        server.models = ["one", "two"]
        with pytest.raises(UserError, match=r"has no model 'm'. Served there: one, two"):
            open_at(server.url).check()
        with pytest.raises(UserError, match=r"name the model: http.*#MODEL. Served there: one, two"):
            open_at(server.url, None).complete_sync([chat("x")])
        assert not server.bodies
        server.models = ["one"]
        alone = open_at(server.url, None)
        alone.check()
        assert alone.name == "one"


def test_unknown_models_of_a_server_without_a_list(open_at):
    with serving(lambda handler, _, body: handler.send(404, error("The model `m` does not exist"))) as server:
        server.models = None
        with pytest.raises(UserError, match=r"no such model or address.*404: The model `m` does not exist"):
            open_at(server.url).complete_sync([chat("x")])


@pytest.mark.parametrize("status", [403, 404, 500, 501])
def test_servers_without_a_list_of_models_are_taken_at_their_word(status, open_at, monkeypatch):
    monkeypatch.delenv("SMALLR_API_KEY", raising=False)
    with serving() as server:
        server.models = status
        model = open_at(server.url)
        model.check()
        assert model.complete_sync([chat("x")])[0].samples[0].text == "echo x"
        with pytest.raises(UserError, match=r"name the model: .* it does not say"):
            open_at(server.url, None).check()
        server.models = 401
        with pytest.raises(UserError, match="SMALLR_API_KEY, which is not set"):
            open_at(server.url).check()


def test_a_bad_key_is_said_at_once_and_never_shown(open_at, monkeypatch, caplog):
    monkeypatch.setenv("SMALLR_API_KEY", "sk-very-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-host")

    def behave(handler: Handler, _: int, body: Body) -> None:
        handler.send(401, error(f"Incorrect key: {handler.headers['Authorization']}"))

    caplog.set_level("DEBUG")
    with serving(behave) as server:
        with pytest.raises(UserError, match="SMALLR_API_KEY") as caught:
            open_at(server.url).complete_sync([chat("x") for _ in range(3)])
        assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert "secret" not in caplog.text


def test_a_key_that_goes_bad_midway_keeps_what_was_answered(open_at):
    def behave(handler: Handler, number: int, body: Body) -> None:
        handler.send(401, error("expired")) if number >= 2 else handler.good(body)

    with serving(behave) as server:
        results = open_at(server.url, concurrency=1).complete_sync([chat(str(i)) for i in range(4)])
    assert [result.error for result in results] == [None, None, "401: expired", "401: expired"]


def test_a_used_up_quota_is_not_waited_for(open_at):
    broke = error("You exceeded your current quota", code="insufficient_quota")
    with serving(lambda handler, _, body: handler.send(429, broke)) as server:
        with pytest.raises(UserError, match="quota is used up"):
            open_at(server.url).complete_sync([chat("x"), chat("y")])
        assert set(server.counts().values()) == {1}


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http:///v1"])
def test_addresses_that_are_none(url, open_at):
    with pytest.raises(UserError, match="must be the address of a server"):
        open_at(url)


def test_keys_do_not_belong_in_addresses(open_at):
    with pytest.raises(UserError, match="environment variable") as caught:
        open_at("http://me:secret@host/v1")
    assert "secret" not in str(caught.value)


def test_callers_with_a_loop_can_wait_too_and_cancelling_ends_requests(open_at):
    hold = threading.Event()

    def behave(handler: Handler, number: int, body: Body) -> None:
        if asked(body) == "slow":
            hold.wait(5)
        handler.good(body)

    with serving(behave) as server:
        model = open_at(server.url, concurrency=1)

        async def main() -> None:
            assert model.complete_sync([chat("a")])[0].samples[0].text == "echo a"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(model.complete([chat("slow")]), 0.2)
            # The slot is free again.
            assert (await asyncio.wait_for(model.complete([chat("b")]), 5))[0].samples[0].text == "echo b"

        asyncio.run(main())
        hold.set()
