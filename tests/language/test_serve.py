"""`smallr serve` with a real engine, against the same engine in this process."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import openai
import pytest

from smallr.language.server import ServerModel
from smallr.sampling.requests import Request, Result, SamplingParams
from tests.runs import ROOT, environment

pytestmark = pytest.mark.process

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
PROCESS = ["--model=tiny-random", "--port=0", "--dtype=float32", "--decode_slots=4", "--max_length=192"]


def start(*flags: str, **extra: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "smallr", "serve", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment(**extra), **pipes)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[subprocess.Popen, str]]:
    process = start(*PROCESS, SMALLR_CACHE=str(tmp_path_factory.mktemp("cache")))
    greeting = process.stdout.readline()
    said = re.fullmatch(r"smallr: serving tiny-random at (http://127\.0\.0\.1:\d+/v1)\n", greeting)
    assert said, greeting + process.stderr.read()
    yield process, said[1]
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server[1], api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def engine(loaded):
    return loaded.engine


def wanted(engine, **params) -> Result:
    request = Request(messages=tuple(QUESTION), params=SamplingParams(**params))
    return engine.generate([request], progress=False)[0]


def test_greedy_and_seeded_chats_are_the_engines(client, engine):
    greedy = client.chat.completions.create(model="tiny-random", messages=QUESTION, max_tokens=20, temperature=0)
    expected = wanted(engine, max_tokens=20)
    assert greedy.choices[0].message.content == expected.samples[0].text
    assert greedy.usage.prompt_tokens == expected.usage.prompt_tokens
    drawn = client.chat.completions.create(model="tiny-random", messages=QUESTION, max_tokens=20, n=3, seed=7)
    expected = wanted(engine, max_tokens=20, n=3, seed=7, temperature=1.0)
    assert [choice.message.content for choice in drawn.choices] == [sample.text for sample in expected.samples]
    assert len({choice.message.content for choice in drawn.choices}) == 3
    assert drawn.usage.completion_tokens == 60


def test_logprobs_are_the_engines(client, engine):
    reply = client.chat.completions.create(
        model="tiny-random", messages=QUESTION, max_tokens=8, seed=1, logprobs=True, top_logprobs=3
    )
    (sample,) = wanted(engine, max_tokens=8, seed=1, temperature=1.0, logprobs=3).samples
    got = reply.choices[0].logprobs.content
    assert [token.token for token in got] == [token.token for token in sample.logprobs]
    for theirs, ours in zip(got, sample.logprobs, strict=True):
        assert theirs.logprob == pytest.approx(ours.logprob, abs=1e-5)
        assert [top.token for top in theirs.top_logprobs] == [token for token, _ in ours.top]


def test_streams_are_the_whole_reply_with_a_stop_string_across_tokens(client):
    options = {"model": "tiny-random", "prompt": "Once upon a time", "max_tokens": 40, "seed": 3, "n": 2}
    free = client.completions.create(**options)
    text = free.choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 5]  # of no one token, most likely
    for options["stop"] in (None, [stop]):
        whole = client.completions.create(**options)
        texts, reasons = ["", ""], ["", ""]
        for chunk in client.completions.create(**options, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        assert texts == [choice.text for choice in whole.choices]
        assert reasons == [choice.finish_reason for choice in whole.choices]
    assert whole.choices[0].text == text[: text.index(stop)]
    assert whole.choices[0].finish_reason == "stop"


def test_prompts_beyond_the_context(client):
    with pytest.raises(openai.BadRequestError, match="max_length") as caught:
        client.completions.create(model="tiny-random", prompt="far " * 300)
    assert caught.value.status_code == 400
    with pytest.raises(openai.BadRequestError, match="vocabulary"):
        client.completions.create(model="tiny-random", prompt=[10**6])


def test_many_at_once_by_our_own_client(server, engine):
    params = SamplingParams(max_tokens=10, temperature=0.8, top_p=0.9, seed=2)
    requests = [Request(prompt=f"Number {i} is", params=params) for i in range(12)]
    with ServerModel(server[1]) as model:
        results = model.complete_sync(requests)
    expected = engine.generate(requests, progress=False)
    assert [result.samples[0].text for result in results] == [result.samples[0].text for result in expected]
    assert [result.usage for result in results] == [result.usage for result in expected]


def test_sigterm_serves_out_what_is_under_way(server, client):
    process, _ = server
    options = {"model": "tiny-random", "prompt": "Once", "temperature": 0, "max_tokens": 150}
    whole = client.completions.create(**options).choices[0].text
    stream = client.completions.create(**options, stream=True)
    text = next(stream).choices[0].text
    process.send_signal(signal.SIGTERM)
    text += "".join(chunk.choices[0].text for chunk in stream)
    assert text == whole
    client.close()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_a_port_that_is_taken_is_said_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start("--model=tiny-random", f"--port={port}")
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (1, "")
        assert err.strip().splitlines()[-1].startswith(f"smallr: cannot listen at 127.0.0.1:{port}")


def test_without_fastapi_it_says_what_to_install(tmp_path):
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')")
    process = start("--model=tiny-random", PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.strip().splitlines()[-1] == (
        "smallr: serving needs fastapi, which is not installed: pip install fastapi uvicorn prometheus_client"
    )
