"""The served protocol, as the official client sees it, over an engine whose words are known."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2 as httpx
import openai
import pytest
import uvicorn

from smallr.language.engine_thread import MAX_RESTARTS, EngineFailure, EngineThread
from smallr.language.local import LocalModel
from smallr.language.server import ServerModel
from smallr.language.serving.app import make_app
from smallr.language.serving.border import MAX_BODY_BYTES, served_hosts
from smallr.language.serving.run import bind
from smallr.sampling.requests import Request, SamplingParams
from tests.language.fake_engine import CONTEXT, FakeEngine, asked, fake_sample

HELLO = [{"role": "user", "content": "hello"}]


class Served:
    """A server in a thread, its engine and a client."""

    def __init__(self, url: str, engine: FakeEngine, thread: EngineThread):
        self.url, self.engine, self.thread = url, engine, thread
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20)


@contextmanager
def serve(max_queue: int = 8, engine=None, **options) -> Iterator[Served]:
    engine = engine or FakeEngine()
    thread = EngineThread(engine)
    app = make_app("fake", thread, max_length=CONTEXT, max_queue=max_queue, **options)
    sock = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    runner = threading.Thread(target=server.run, args=([sock],), daemon=True)
    runner.start()
    until(lambda: server.started)
    served = Served(f"http://127.0.0.1:{sock.getsockname()[1]}/v1", engine, thread)
    try:
        yield served
    finally:
        served.client.close()
        server.should_exit = True
        runner.join()
        thread.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve() as served:
        yield served


def until(holds) -> None:
    """Waits; a test that waits in vain fails."""
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def expected(prompt=None, index=0, **params):
    request = Request(prompt=prompt, params=SamplingParams(**params)) if prompt else Request(
        messages=tuple(HELLO), params=SamplingParams(**params)
    )  # fmt: skip
    return fake_sample(request, index)[0]


def test_chat(served):
    reply = served.client.chat.completions.create(model="fake", messages=HELLO, max_tokens=6, temperature=0)
    sample = expected(max_tokens=6)
    assert reply.object == "chat.completion"
    assert (reply.choices[0].message.role, reply.choices[0].message.content) == ("assistant", sample.text)
    assert (reply.choices[0].finish_reason, reply.choices[0].logprobs) == ("length", None)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (5, 6, 11)


def test_chat_without_a_limit_has_the_room_of_the_context(served):
    reply = served.client.chat.completions.create(model="fake", messages=HELLO, temperature=0)
    assert reply.usage.completion_tokens == CONTEXT
    both = served.client.chat.completions.create(model="fake", messages=HELLO, max_completion_tokens=3, temperature=0)
    assert both.usage.completion_tokens == 3


def test_content_in_parts(served):
    parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    reply = served.client.chat.completions.create(model="fake", messages=parts, max_tokens=6, temperature=0)
    assert reply.choices[0].message.content == expected(max_tokens=6).text


def test_text_with_several_prompts_and_n(served):
    reply = served.client.completions.create(model="fake", prompt=["a", "b"], n=2, max_tokens=5, seed=3)
    wanted = [expected(p, i, max_tokens=5, n=2, temperature=1.0, seed=3).text for p in "ab" for i in range(2)]
    assert [choice.text for choice in reply.choices] == wanted
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert len(set(wanted)) == 4
    assert reply.usage.completion_tokens == 20
    tokens = served.client.completions.create(model="fake", prompt=[7, 8], max_tokens=5, temperature=0)
    assert tokens.choices[0].text == expected((7, 8), max_tokens=5).text
    assert tokens.object == "text_completion"


def test_stop_strings(served):
    whole = expected(max_tokens=30).text
    stop = " blue"
    reply = served.client.chat.completions.create(
        model="fake", messages=HELLO, max_tokens=30, temperature=0, stop=[stop, "never"]
    )
    assert reply.choices[0].message.content == whole[: whole.index(stop)]
    assert reply.choices[0].finish_reason == "stop"


def test_seeds_and_rounds(served):
    def ask(**options):
        reply = served.client.chat.completions.create(model="fake", messages=HELLO, max_tokens=20, **options)
        return reply.choices[0].message.content

    assert ask(seed=1) == ask(seed=1) == expected(max_tokens=20, temperature=1.0, seed=1).text
    assert ask(seed=1) != ask(seed=2)
    other_round = {"seed": 1, "extra_body": {"round": 1}}
    assert ask(seed=1) != ask(**other_round) == ask(**other_round)
    assert ask() != ask()  # without a seed each request is drawn anew


def test_logprobs(served):
    chat = served.client.chat.completions.create(
        model="fake", messages=HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    sample = expected(max_tokens=4, logprobs=2)
    got = chat.choices[0].logprobs.content
    assert [(t.token, t.logprob, bytes(t.bytes).decode()) for t in got] == [
        (t.token, t.logprob, t.token) for t in sample.logprobs
    ]
    assert [[(top.token, top.logprob) for top in t.top_logprobs] for t in got] == [list(t.top) for t in sample.logprobs]
    text = served.client.completions.create(model="fake", prompt="p", max_tokens=4, temperature=0, logprobs=2)
    sample = expected("p", max_tokens=4, logprobs=2)
    got = text.choices[0].logprobs
    assert got.tokens == [t.token for t in sample.logprobs]
    assert got.token_logprobs == [-0.5] * 4
    assert got.top_logprobs == [dict(t.top) for t in sample.logprobs]
    assert [sample.text[start:] for start in got.text_offset] == ["".join(got.tokens[i:]) for i in range(4)]
    bare = served.client.completions.create(model="fake", prompt="p", max_tokens=4, temperature=0, logprobs=0)
    assert bare.choices[0].logprobs.top_logprobs == [{token: -0.5} for token in got.tokens]


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("stop", [None, [" blue", " näïve"]])
def test_a_streamed_chat_is_the_whole_one(served, logprobs, stop):
    options = {"model": "fake", "messages": HELLO, "max_tokens": 12, "n": 3, "seed": 5, "stop": stop}
    options |= {"logprobs": True, "top_logprobs": 1} if logprobs else {}
    whole = served.client.chat.completions.create(**options)
    texts, reasons, tokens, roles = ["", "", ""], {}, [[], [], []], []
    chunks = list(served.client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        assert choice.index not in reasons
        texts[choice.index] += choice.delta.content or ""
        roles += [choice.index] if choice.delta.role else []
        tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}
    assert sorted(roles) == [0, 1, 2]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 3 * 3
    if logprobs:
        assert tokens == [choice.logprobs.content for choice in whole.choices]


def test_a_streamed_text_is_the_whole_one(served):
    options = {"model": "fake", "prompt": ["a", "b"], "max_tokens": 7, "temperature": 0, "logprobs": 1}
    whole = served.client.completions.create(**options)
    texts, offsets = ["", ""], [[], []]
    chunks = list(served.client.completions.create(**options, stream=True))
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
    assert texts == [choice.text for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]
    assert all(chunk.usage is None for chunk in chunks)


BAD = {
    "temperature": ({"temperature": -1}, "temperature"),
    "temperature's type": ({"temperature": "warm"}, "temperature"),
    "top_p": ({"top_p": 0}, "top_p"),
    "n": ({"n": 0}, "n"),
    "max_tokens": ({"max_tokens": 0}, "max_tokens"),  # of a chat; a text may be read alone
    "stop": ({"stop": [""]}, "stop"),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs"),
    "a large penalty": ({"frequency_penalty": 2.5}, "frequency_penalty"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "a schema without its type": ({"response_format": {"type": "json_schema"}}, "response_format"),
    "a type of its own": ({"response_format": {"type": "structural_tag"}}, "response_format"),
    "a bias": ({"logit_bias": {"5": 101}}, "logit_bias"),
    "a bias of a word": ({"logit_bias": {"red": 1}}, "logit_bias"),
    "two grammars": ({"extra_body": {"guided_regex": "a", "guided_choice": ["b"]}}, "guided_regex"),
    "no grammar": ({"extra_body": {"structured_outputs": {}}}, "structured_outputs"),
    "two ways on": (
        {"extra_body": {"add_generation_prompt": True, "continue_final_message": True}},
        "continue_final_message",
    ),
    "unknown": ({"extra_body": {"top_q": 1}}, "top_q"),
    "no messages": ({"messages": []}, "messages"),
    "not a number": ({"extra_body": {"top_p": True}}, "top_p"),
    "top_k": ({"extra_body": {"top_k": 99999999999}}, "top_k"),
    "top_k's type": ({"extra_body": {"top_k": "5"}}, "top_k"),
    "stop_token_ids": ({"extra_body": {"stop_token_ids": [99999999999]}}, "stop_token_ids"),
    "many stops": ({"stop": ["a"] * 17}, "stop"),
    "long stops": ({"stop": "a" * 257}, "stop"),
    "seed": ({"seed": 2**63}, "seed"),
    "round": ({"extra_body": {"round": -1}}, "round"),
    "max_tokens beyond": ({"max_tokens": 2**31}, "max_tokens"),
    "no penalty": ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"),
    "true is not 1": ({"extra_body": {"repetition_penalty": True}}, "repetition_penalty"),
    "a tool's choice": ({"tool_choice": "required"}, "tool_choice"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parameters_are_named(served, case):
    change, field = BAD[case]
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.chat.completions.create(**{"model": "fake", "messages": HELLO, **change})
    assert caught.value.status_code == 400
    assert caught.value.param == field
    assert caught.value.type == "invalid_request_error"
    assert field in caught.value.message


def test_what_changes_nothing_is_taken(served):
    reply = served.client.chat.completions.create(
        model="fake", messages=HELLO, max_tokens=6, temperature=0, frequency_penalty=0, presence_penalty=0.0,
        logit_bias={}, user="me", response_format={"type": "text"}, top_p=None, tool_choice="none", tools=[],
        parallel_tool_calls=True, store=False, metadata={}, service_tier="auto", stream_options=None,
        extra_body={"repetition_penalty": 1.0, "skip_special_tokens": True, "echo": False},
    )  # fmt: skip
    assert reply.choices[0].message.content == expected(max_tokens=6).text


@pytest.mark.parametrize("change", [{"best_of": 5}, {"suffix": "x"}, {"prompt": ""}, {"prompt": []}])
def test_bad_parameters_of_text(served, change):
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.completions.create(**{"model": "fake", "prompt": "x", **change})
    assert caught.value.param == next(iter(change))


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_is_the_requests_fault(served, stream):
    with pytest.raises(openai.BadRequestError, match="99 tokens"):
        served.client.completions.create(model="fake", prompt="too long", stream=stream)


def test_models_and_routes(served):
    (model,) = served.client.models.list().data
    assert (model.id, model.owned_by, model.max_model_len) == ("fake", "smallr", CONTEXT)
    assert served.client.models.retrieve("fake").id == "fake"
    with pytest.raises(openai.NotFoundError, match="served here: fake"):
        served.client.chat.completions.create(model="gpt", messages=HELLO)
    with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings"):
        served.client.embeddings.create(model="fake", input="x")


def _raw(url: str, path: str, body: bytes | None = None) -> socket.socket:
    """A connection by hand, on which a request was sent."""
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=20)
    method = "GET" if body is None else "POST"
    body = body or b""
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n\r\n".encode() + body)
    return connection


def test_a_body_that_is_no_json(served):
    deep = b'{"prompt": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    for body in (b"{", b"[]", b"\xff", b'{"prompt": NaN}', deep, b'"' + b'\\"' * 100_000):
        with _raw(served.url, "/v1/completions", body) as connection:
            assert connection.recv(9999).startswith(b"HTTP/1.1 400")


def _post(served, **request) -> httpx.Response:
    body = {"prompt": "x", "max_tokens": 2}
    return httpx.post(f"{served.url}/completions", **({"json": body} | request))


def test_a_body_that_is_too_large(served):
    assert _post(served, json={"prompt": "x" * MAX_BODY_BYTES}).status_code == 413

    def chunks():  # without a Content-Length
        yield b'{"prompt": "'
        for _ in range(MAX_BODY_BYTES // 2**16 + 1):
            yield b"x" * 2**16

    response = _post(served, json=None, content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413


def test_a_web_page_can_not_post(served):
    body = json.dumps({"prompt": "x"}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        response = _post(served, json=None, content=body, headers={"Content-Type": kind} if kind else {})
        assert (response.status_code, "Content-Type" in response.text) == (415, True), kind
    assert served_hosts("0.0.0.0", []) == ()
    assert served_hosts("0.0.0.0", ["box"]) == (*served_hosts("localhost", [])[:3], "0.0.0.0", "box")
    with serve(allowed_hosts=served_hosts("127.0.0.1", ["box"])) as guarded:
        for host, status in (
            ("evil.example", 403), ("evil.example:80", 403), ("localhost.evil.example", 403), ("", 403),
            ("127.0.0.1:8000", 200), ("localhost", 200), ("box:8000", 200), ("LOCALHOST:1", 200), ("[::1]:8000", 200),
        ):  # fmt: skip
            assert _post(guarded, headers={"Host": host}).status_code == status, host
            health = httpx.get(guarded.url.replace("/v1", "/health"), headers={"Host": host})
            assert health.status_code == status, host


def test_history_as_the_client_gives_it_is_taken_back(served):
    first = served.client.chat.completions.create(model="fake", messages=HELLO, max_tokens=3, temperature=0)
    message = first.choices[0].message.model_dump()
    assert None in message.values()
    again = [
        *HELLO,
        message | {"tool_calls": None, "annotations": []},
        {"role": "user", "content": "more", "name": None},
    ]
    assert served.client.chat.completions.create(model="fake", messages=again, max_tokens=3).choices[0].message.content
    again[1] = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}
    with pytest.raises(openai.BadRequestError, match="tool_calls is not supported"):
        served.client.chat.completions.create(model="fake", messages=again)


def test_health(served):
    with _raw(served.url, "/health") as connection:
        assert connection.recv(9999).startswith(b"HTTP/1.1 200")


def test_a_full_queue_says_so_and_a_client_comes_back(served):
    with serve(max_queue=2) as small:
        small.engine.may_step.clear()
        waiting = [small.thread.submit(Request(prompt=f"w{i}")) for i in range(2)]
        with pytest.raises(openai.InternalServerError) as caught:
            small.client.completions.create(model="fake", prompt="x")
        assert (caught.value.status_code, caught.value.code) == (503, "queue_full")
        assert caught.value.response.headers["retry-after"] == "1"
        small.engine.may_step.set()
        for future in waiting:
            future.result(timeout=20)
        assert small.client.completions.create(model="fake", prompt="x").choices[0].text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(stream):
    with serve(max_queue=1) as small:
        small.engine.may_step.clear()
        body = {"prompt": "leaver", "max_tokens": 60, "stream": stream}
        connection = _raw(small.url, "/v1/completions", json.dumps(body).encode())
        until(lambda: small.thread.load == 1 and small.engine.handles)
        connection.close()
        until(lambda: small.thread.load == 0 and small.engine.cancelled == ["leaver"])
        small.engine.may_step.set()
        assert small.client.completions.create(model="fake", prompt="x").choices[0].text


def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_its_slot():
    with serve() as small:
        body = {"prompt": "leaver", "max_tokens": 60, "stream": True}
        step, calls = small.engine.step, threading.Semaphore(5)
        small.engine.step = lambda: step() if calls.acquire(timeout=0.05) else None
        connection = _raw(small.url, "/v1/completions", json.dumps(body).encode())
        assert b"200 OK" in connection.recv(9999)
        assert small.thread.load == 1
        connection.close()
        until(lambda: small.thread.load == 0 and small.engine.cancelled == ["leaver"])


def test_an_engine_that_fails_again_and_again_has_failed():
    with serve() as small:
        small.engine.fails = MAX_RESTARTS + 1
        for _ in range(MAX_RESTARTS + 1):
            with pytest.raises(openai.InternalServerError, match="out of memory"):
                small.client.completions.create(model="fake", prompt="x")
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            small.client.completions.create(model="fake", prompt="x", stream=True)
        with _raw(small.url, "/health") as connection:
            assert connection.recv(9999).startswith(b"HTTP/1.1 503")


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_step_ends_the_requests_that_had_begun_and_no_others(stream):
    with serve() as small:
        small.engine.decode_slots = 1
        small.engine.may_step.clear()
        begun, waiting = [], []
        for name, results in (("first", begun), ("second", waiting)):
            count = len(small.engine.handles)
            ask = threading.Thread(
                target=lambda name=name, results=results: results.append(_outcome(small, name, stream))
            )
            ask.start()
            until(lambda count=count: len(small.engine.handles) > count)
        small.engine.fails = 1
        small.engine.may_step.set()
        until(lambda: begun and waiting)
        assert (begun[0][0], waiting[0][0]) == (500, 200)
        assert "out of memory" in begun[0][1]
        assert waiting[0][1] == expected("second", max_tokens=5).text
        health = httpx.get(small.url.replace("/v1", "/health")).json()
        assert health == {"status": "ok", "requests": 0, "restarts": 1}


def _outcome(small, prompt: str, stream: bool) -> tuple[int, str]:
    options = {"model": "fake", "prompt": prompt, "max_tokens": 5, "temperature": 0}
    try:
        if stream:
            return 200, "".join(
                chunk.choices[0].text for chunk in small.client.completions.create(**options, stream=True)
            )
        return 200, small.client.completions.create(**options).choices[0].text
    except openai.APIStatusError as error:
        return error.status_code, error.message


def test_a_request_that_breaks_in_the_engine_is_the_only_one(served):
    with pytest.raises(openai.InternalServerError, match="TextEncodeInput") as caught:
        served.client.completions.create(model="fake", prompt="cannot be encoded")
    assert caught.value.code == "request_failed"
    assert served.client.completions.create(model="fake", prompt="x").choices[0].text
    with LocalModel("fake", FakeEngine()) as local:
        bad, good = local.complete_sync([Request(prompt="cannot be encoded"), Request(prompt="x")])
    assert "TextEncodeInput" in bad.error
    assert good.error is None


def test_smallrs_own_client_gets_what_the_local_model_gives(served):
    requests = [
        Request(
            messages=tuple(HELLO),
            params=SamplingParams(max_tokens=9, temperature=0.7, n=2, seed=4, round=3, logprobs=1),
        ),
        Request(prompt="plain", params=SamplingParams(max_tokens=9, stop=(" red",), top_k=5, min_p=0.1)),
        Request(prompt="too long"),
    ]
    with ServerModel(served.url) as remote, LocalModel("fake", FakeEngine()) as local:
        theirs, ours = remote.complete_sync(requests), local.complete_sync(requests)
        assert remote.name == "fake"
    assert theirs[2].error == f"400: {ours[2].error}"
    for there, here in zip(theirs[:2], ours[:2], strict=True):
        assert there.usage == here.usage
        for a, b in zip(there.samples, here.samples, strict=True):
            assert (a.text, a.finish_reason) == (b.text, b.finish_reason)
            if b.logprobs is not None:
                assert [(t.token, t.logprob, t.top) for t in a.logprobs] == [
                    (t.token, t.logprob, t.top) for t in b.logprobs
                ]


def test_a_prompt_that_takes_long_to_tokenise_holds_up_nobody():
    with serve() as small:
        encode, long = small.engine.encode, threading.Event()
        small.engine.encode = lambda request: encode(request) if asked(request) != "long" or long.wait(20) else ""
        answer = small.thread.submit(Request(prompt="long"))
        for _ in range(3):
            assert small.client.completions.create(model="fake", prompt="x").choices[0].text
        assert not answer.done()
        long.set()
        assert answer.result(timeout=20).samples


def test_callers_of_a_local_model_share_its_batch():
    engine = FakeEngine(decode_slots=4)
    engine.may_step.clear()
    with LocalModel("fake", engine) as model:
        threads = [
            threading.Thread(target=model.complete_sync, args=([Request(prompt=f"{i}{j}") for j in range(2)],))
            for i in range(3)
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(engine.handles) == 6)
        engine.may_step.set()
        for thread in threads:
            thread.join(timeout=20)
        assert engine.most == 4
        assert model.totals.requests == 6


def test_a_local_engine_that_has_failed_is_raised():
    engine = FakeEngine()
    engine.fails = 100
    with LocalModel("fake", engine) as model:
        for _ in range(MAX_RESTARTS):
            (result,) = model.complete_sync([Request(prompt="x")])
            assert "out of memory" in result.error
        with pytest.raises(EngineFailure, match="out of memory"):
            model.complete_sync([Request(prompt="x")])
