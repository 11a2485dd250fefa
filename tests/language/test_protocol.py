"""A real engine behind the real application, as clients of OpenAI, vLLM and lm-eval use it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import httpx2 as httpx
import jax
import numpy as np
import openai
import pytest
import uvicorn

from smallr.language.engine_thread import EngineThread
from smallr.language.loading import load_trained
from smallr.language.server import ServerModel
from smallr.language.serving.app import make_app
from smallr.language.serving.metrics import Metrics
from smallr.language.serving.run import bind
from smallr.sampling.engine import Engine
from smallr.sampling.requests import Grammar, Request, SamplingParams
from tests.models.families.checks import logits_of

pytestmark = pytest.mark.parity

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}, "sure": {"type": "boolean"}},
    "required": ["sum", "sure"],
    "additionalProperties": False,
}
AS_JSON = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA, "strict": True}}


class Served(NamedTuple):
    """A server in a thread, its engine and a client."""

    root: str
    engine: Engine
    client: openai.OpenAI

    def post(self, path: str, **fields) -> httpx.Response:
        return httpx.post(self.root + path, json=fields, timeout=120)


@pytest.fixture(scope="module")
def served(loaded) -> Iterator[Served]:
    metrics = Metrics("tiny")
    thread = EngineThread(loaded.engine, metrics.ended)
    app = make_app("tiny", thread, max_length=loaded.engine.max_length, max_queue=64, metrics=metrics)
    sock = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    runner = threading.Thread(target=server.run, args=([sock],), daemon=True)
    runner.start()
    root = f"http://127.0.0.1:{sock.getsockname()[1]}"
    client = openai.OpenAI(base_url=f"{root}/v1", api_key="none", max_retries=0, timeout=120)
    while not server.started:
        time.sleep(0.01)
    yield Served(root, loaded.engine, client)
    client.close()
    server.should_exit = True
    runner.join()
    thread.close()


@pytest.mark.parametrize("stream", [False, True])
def test_json_by_a_schema(served, stream):
    options = {"model": "tiny", "messages": QUESTION, "max_tokens": 100, "seed": 3, "response_format": AS_JSON}
    if stream:
        chunks = list(served.client.chat.completions.create(**options, stream=True))
        texts = ["".join(chunk.choices[0].delta.content or "" for chunk in chunks)]
        reasons = [chunks[-1].choices[0].finish_reason]
        assert len(chunks) > 6
    else:
        choices = served.client.chat.completions.create(**options, n=3).choices
        texts, reasons = [each.message.content for each in choices], [each.finish_reason for each in choices]
    assert set(reasons) == {"stop"}
    for text in texts:
        assert {name: type(value) for name, value in json.loads(text).items()} == {"sum": int, "sure": bool}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, "response_format"),
        ({"guided_regex": "(a"}, "guided_regex"),
        ({"structured_outputs": {"json": {"uniqueItems": True}}}, "structured_outputs"),
        ({"guided_choice": ["a"], "stop": "b"}, "stop"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
    ],
)
def test_what_the_engine_refuses_names_the_field(served, fields, param):
    reply = served.post("/v1/chat/completions", messages=QUESTION, max_tokens=5, **fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_our_own_client_gets_what_the_engine_gives(served):
    params = [
        SamplingParams(max_tokens=12, presence_penalty=1.0, frequency_penalty=0.5),
        SamplingParams(max_tokens=12, repetition_penalty=1.5, logit_bias=((300, 5.0), (301, -100.0))),
        SamplingParams(max_tokens=100, grammar=Grammar("json", json.dumps(SCHEMA)), seed=1, temperature=1.0),
        SamplingParams(max_tokens=30, grammar=Grammar("choice", '["red", "blue"]')),
    ]
    requests = [Request(messages=tuple(QUESTION), params=each) for each in params]
    requests.append(
        Request(messages=(*QUESTION, {"role": "assistant", "content": "It is"}), continue_final_message=True)
    )
    requests.append(Request(messages=requests[-1].messages, add_generation_prompt=True))
    with ServerModel(f"{served.root}/v1") as model:
        results = model.complete_sync(requests)
    assert [result.error for result in results] == [None] * len(requests)
    handles = [served.engine.encode(request) for request in requests]
    assert [result.usage.prompt_tokens for result in results] == [len(each.prompt) for each in handles]
    assert len(handles[-2].prompt) < len(handles[-1].prompt)
    texts = [result.samples[0].text for result in results]
    assert texts[3] in ("red", "blue")
    assert set(json.loads(texts[2])) == {"sum", "sure"}
    assert texts[0] != texts[1]


def test_a_turn_that_is_begun_goes_on(served):
    begun = [*QUESTION, {"role": "assistant", "content": "12 + 30 ="}]
    ways = ({}, {"continue_final_message": True}, {"add_generation_prompt": False, "continue_final_message": True})
    told = [served.post("/tokenize", messages=begun, **way).json()["tokens"] for way in ways]
    assert told[0] == told[1] == told[2]
    assert served.post("/detokenize", tokens=told[0]).json()["prompt"].endswith("12 + 30 =")
    opened = served.post("/tokenize", messages=begun, add_generation_prompt=True).json()["tokens"]
    assert served.engine.codec.decode(opened).endswith("<|im_end|>\n<|im_start|>assistant\n")
    bare = served.post("/tokenize", messages=QUESTION, add_generation_prompt=False).json()
    assert served.engine.codec.decode(bare["tokens"]).endswith("30?<|im_end|>\n")
    fields = {"max_tokens": 8, "temperature": 0, "logprobs": True}
    of_chat = served.post("/v1/chat/completions", messages=begun, continue_final_message=True, **fields).json()
    of_text = served.post("/v1/completions", prompt=told[0], **(fields | {"logprobs": 0})).json()
    assert of_chat["choices"][0]["message"]["content"] == of_text["choices"][0]["text"]


def test_tokens_and_back(served):
    found = served.post("/tokenize", prompt="Twelve, näïve", return_token_strs=True).json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == served.engine.max_length
    assert served.post("/detokenize", tokens=found["tokens"]).json() == {"prompt": "Twelve, näïve"}
    assert served.post("/tokenize", prompt="a " * 5000).json()["count"] > served.engine.max_length
    for path, fields, param in (
        ("/tokenize", {"prompt": ""}, "prompt"), ("/tokenize", {"messages": []}, "messages"), ("/tokenize", {}, "prompt"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"), ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/tokenize", {"prompt": "x", "model": "other"}, "model"),
    ):  # fmt: skip
        reply = served.post(path, **fields)
        assert (reply.status_code in (400, 404), reply.json()["error"]["param"]) == (True, param), reply.text
    assert "eos_token" in httpx.get(f"{served.root}/tokenizer_info").json()
    assert set(httpx.get(f"{served.root}/version").json()) == {"version"}


def test_an_echo_whole_and_streamed(served):
    options = {"model": "tiny", "prompt": "One and two", "max_tokens": 4, "temperature": 0, "echo": True, "logprobs": 1}
    whole = served.client.completions.create(**options).choices[0]
    assert whole.text.startswith("One and two")
    assert whole.logprobs.token_logprobs[0] is None
    assert whole.logprobs.top_logprobs[0] is None
    count = served.post("/tokenize", prompt="One and two").json()["count"]
    assert len(whole.logprobs.tokens) == len(whole.logprobs.text_offset) == count + 4
    chunks = [chunk.choices[0] for chunk in served.client.completions.create(**options, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    parts = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    for name in ("token_logprobs", "text_offset"):
        assert list(chain.from_iterable(getattr(part, name) for part in parts)) == getattr(whole.logprobs, name)
    assert len(parts) == 5  # the prompt, then token by token
    alone = served.client.completions.create(**(options | {"max_tokens": 0}))
    assert (alone.choices[0].text, alone.usage.completion_tokens) == ("One and two", 0)
    assert alone.choices[0].logprobs.token_logprobs == whole.logprobs.token_logprobs[:count]


def test_lm_eval_scores_and_generates_through_the_server(served):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(base_url=f"{served.root}/v1/completions", model="tiny", max_length=192, batch_size=2)
    assert model.tokenizer_backend == "remote"
    pairs = [("The sum of 12 and 30 is", " 42"), ("Red", " and blue"), ("The sum of 12 and 30 is", " 43 or so")]
    asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    got = model.loglikelihood(asked, disable_tqdm=True)
    _, decoder = load_trained("tiny-random", served.engine.mesh, dtype="float32")
    for (context, continuation), (logprob, is_greedy) in zip(pairs, got, strict=True):
        ids = served.engine.tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
        begin = len(served.engine.tokenizer(context, add_special_tokens=False)["input_ids"])
        row = np.asarray([ids + [0] * (16 - len(ids))])  # one length for all
        want = np.asarray(jax.nn.log_softmax(logits_of(decoder, row)))[0, begin - 1 : len(ids) - 1]
        assert logprob == pytest.approx(want[np.arange(len(want)), ids[begin:]].sum(), abs=1e-4)
        assert is_greedy == (want.argmax(-1).tolist() == ids[begin:])
    until = Instance("generate_until", {}, ("Once", {"until": ["\n"], "max_gen_toks": 6, "temperature": 0}), 0)
    (text,) = model.generate_until([until], disable_tqdm=True)
    plain = served.client.completions.create(model="tiny", prompt="Once", max_tokens=6, temperature=0, stop=["\n"])
    assert text == plain.choices[0].text


def test_lm_eval_chats_through_the_server(served):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr
    from lm_eval.models.openai_completions import LocalChatCompletion

    model = LocalChatCompletion(base_url=f"{served.root}/v1/chat/completions", model="tiny")
    messages = [{"role": "user", "content": "One and two and three"}]
    bias = {str(served.engine.tokenizer.eos_token_id): -100}  # so that it writes something
    asked = (
        JsonChatStr(json.dumps(messages)),
        {"until": ["."], "max_gen_toks": 6, "do_sample": False, "logit_bias": bias},
    )
    (text,) = model.generate_until([Instance("generate_until", {}, asked, 0)], disable_tqdm=True)
    options = {"messages": messages, "max_tokens": 6, "temperature": 0, "stop": ["."], "logit_bias": bias}
    plain = served.client.chat.completions.create(model="tiny", **options)
    assert text == plain.choices[0].message.content != ""


def test_metrics(served):
    def values() -> dict[str, float]:
        text = httpx.get(f"{served.root}/metrics").text
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    before = values()
    served.client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=4, n=2, seed=1)
    served.post("/v1/completions", prompt=[10**6])
    after = values()
    changed = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    of = '{model_name="tiny"}'
    assert changed[f"vllm:prompt_tokens_total{of}"] == 3
    assert changed[f"vllm:generation_tokens_total{of}"] == 8
    assert changed['vllm:request_success_total{finished_reason="length",model_name="tiny"}'] == 2
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_time_per_output_token"):
        assert changed[f"vllm:{name}_seconds_count{of}"] == 1
        assert 0 < after[f"vllm:{name}_seconds_sum{of}"] < 600
    assert (after[f"vllm:num_requests_running{of}"], after[f"vllm:num_requests_waiting{of}"]) == (0, 0)
    assert after[f"smallr:engine_restarts{of}"] == 0
