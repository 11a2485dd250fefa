"""Random requests, good and bad, to a real engine behind the real application: nothing ends it, nothing is a 500."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallr.core.sharding import make_mesh
from smallr.language.engine_thread import EngineThread
from smallr.language.serving.app import make_app
from smallr.language.serving.bodies import EMPTY_IN_MESSAGES, IGNORED, NEUTRAL, Body, ChatBody, TextBody
from smallr.sampling.engine import Engine
from tests.models.families.checks import tiny
from tests.models.helpers import from_torch
from tests.sampling.models import letters

pytestmark = pytest.mark.parity

AT_ONCE = 8
EXAMPLES = int(os.environ.get("SMALLR_FUZZ_REQUESTS", "304")) // AT_ONCE
KINDS = {"/v1/chat/completions": ChatBody, "/v1/completions": TextBody}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
GOOD = {"prompt": "What?", "max_tokens": 5, "temperature": 0}
# Good requests stay below these limits, so that they are short and fit the tiny model.
SMALL = {
    "n": (1, 3),
    "max_tokens": (1, 6),
    "max_completion_tokens": (1, 6),
    "stop_token_ids": (0, 256),
    "prompt": (0, 256),
}
# What depends on other fields, and grammars, of which a request has one; spoilt requests have them.
LEFT_OUT = (
    "best_of", "top_logprobs", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
)  # fmt: skip

TEXTS = st.one_of(st.text(max_size=8), st.sampled_from(["", "user", "assistant", "\x00", "é🙂", "a\u2028b"]))
JUNK = st.recursive(
    st.one_of(
        st.none(), st.booleans(), TEXTS, st.sampled_from(["\ud83d", "\udc00x", "x" * 300, "x" * 20_000]),
        st.sampled_from([0, -1, 2**31, -(2**31), 2**63, 99999999999, 10**30, 1.5, -0.0, 1e308, 5e-324]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
JUNK = JUNK | st.sampled_from(
    [[[[]]] * 9, {"a": {"a": {"a": []}}}, ["a"] * 200, [1] * 5000, [-1], [10**12], [None], [True]]
)
RAW = st.sampled_from(
    [
        b"", b"null", b"[]", b"{", b'{"prompt": NaN}', b'{"prompt": "x", "temperature": Infinity}', b"\xff\xfe", b"\x00",
        b'{"prompt": "x", "top_p": 1e999}', b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", b'"' + b'\\"' * 9999,
        b"[" * 50_000, b'{"a":' * 50_000, b'{"prompt": "\xed\xa0\xbd"}', b"\xef\xbb\xbf{}",
        json.dumps({"prompt": "x" * 5_000_000}).encode(), json.dumps(dict.fromkeys(map(str, range(2000)))).encode(),
        json.dumps({"messages": [{"role": "user", "content": "x"}] * 3000}).encode(),
        json.dumps({"messages": [None] * 100_000}).encode(), json.dumps({"prompt": [None] * 100_000}).encode(),
        json.dumps({"prompt": [[0]] * 100_000}).encode(), json.dumps({"prompt": "x", "stop": ["a"] * 100_000}).encode(),
    ]
)  # fmt: skip


# Values of objects whose names are free.
OBJECTS = {
    "logit_bias": st.dictionaries(st.integers(0, 256).map(str), st.floats(-100, 100), max_size=3),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(["enable_thinking", "x"]), st.booleans()),
    "response_format": st.sampled_from(
        [
            {"type": "text"}, {"type": "text"}, {"type": "json_object"},
            {"type": "json_schema", "json_schema": {"schema": {"enum": ["a", 1, [True]]}}},
        ]
    ),
}  # fmt: skip


def values_of(schema: dict[str, Any], definitions: dict[str, Any], name: str = "") -> st.SearchStrategy:
    """Values that a JSON schema, as pydantic writes it, allows."""
    if name in OBJECTS:
        return OBJECTS[name]
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        return st.one_of([values_of(each, definitions, name) for each in schema["anyOf"]])
    kind = schema["type"]
    if kind == "object":
        properties = {field: each for field, each in schema["properties"].items() if field not in LEFT_OUT}
        fields = {field: values_of(each, definitions, field) for field, each in properties.items()}
        required = set(schema.get("required", ()))
        return st.fixed_dictionaries(
            {field: value for field, value in fields.items() if field in required},
            optional={field: value for field, value in fields.items() if field not in required},
        )
    if kind == "array":
        least = schema.get("minItems", 0)
        return st.lists(values_of(schema["items"], definitions, name), min_size=least, max_size=least + 2)
    if kind == "integer":
        least, most = SMALL.get(name, (schema.get("minimum", 0), schema.get("maximum", 9)))
        return st.integers(least, min(least + 100, most)) | st.sampled_from([least, most])
    if kind == "number":
        least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1e-9)
        return st.floats(least, schema["maximum"]) | st.sampled_from([least, schema["maximum"]])
    if schema.get("pattern"):
        return st.just(schema["pattern"].strip("^$"))
    if name == "model":
        return st.just("tiny")
    if name == "prompt":
        return TEXTS.filter(bool)
    texts = TEXTS.filter(lambda text: schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", 1000))
    return {"boolean": st.booleans(), "string": texts, "null": st.none()}[kind]


def good_bodies(kind: type[Body]) -> tuple[list[str], st.SearchStrategy]:
    """Names that mean something in a body, and bodies as its schema wants them."""
    schema = kind.model_json_schema()
    return [*schema["properties"], *NEUTRAL, *IGNORED], values_of(schema, schema["$defs"])


GOOD_BODIES = {path: good_bodies(kind) for path, kind in KINDS.items()}


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A path, a body and a content type: as the schema wants them, then spoilt in some places, or in none."""
    path = draw(st.sampled_from(sorted(KINDS)))
    if draw(st.integers(0, 19)) == 0:
        return {"url": path, "content": draw(RAW), "headers": {"Content-Type": "application/json"}}
    known, bodies = GOOD_BODIES[path]
    body = draw(bodies)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(known) | TEXTS | st.just("\ud83d"))
        value = draw(JUNK)
        if name in NEUTRAL and draw(st.booleans()):
            value = NEUTRAL[name][0]
        if name == "messages" and body.get("messages") and draw(st.booleans()):
            inside = draw(st.sampled_from(["role", "content", "name", "x", *EMPTY_IN_MESSAGES]))
            body["messages"][-1] = {**body["messages"][-1], inside: value}
        else:
            body[name] = value
    content = json.dumps(body).encode()
    if draw(st.integers(0, 19)) == 0:
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(st.binary(max_size=3)) + content[place + draw(st.integers(0, 9)) :]
    kind = draw(st.sampled_from(["application/json"] * 20 + ["text/plain", "application/json; charset=utf-8"]))
    return {"url": path, "content": content, "headers": {"Content-Type": kind}}


class Service:
    """The application over a tiny random Llama, called without a socket, in one event loop."""

    def __init__(self) -> None:
        tokenizer = letters().__class__(tokenizer_object=letters().backend_tokenizer, eos_token="<end>")
        tokenizer.chat_template = TEMPLATE
        decoder = from_torch(tiny(transformers.LlamaConfig, vocab_size=len(tokenizer)), remat="none")
        engine = Engine(
            decoder, tokenizer, make_mesh(1, 1, 1), decode_slots=8, max_length=64, prefill_chunk=32, steps=8
        )
        self.thread = EngineThread(engine)
        app = make_app("tiny", self.thread, max_length=64, max_queue=10_000, allowed_hosts=["localhost"])
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.loop = asyncio.new_event_loop()
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)
        self.statuses: Counter[int] = Counter()

    def ask(self, *requests: dict[str, Any]) -> list[httpx.Response]:
        """Sends requests at the same time."""

        async def everything() -> list[httpx.Response]:
            return await asyncio.gather(*(self.client.post(**request) for request in requests))

        responses = self.loop.run_until_complete(everything())
        self.statuses.update(response.status_code for response in responses)
        return responses

    def good(self) -> str:
        """The text of a good request."""
        (response,) = self.ask({"url": "/v1/completions", "json": GOOD})
        return response.json()["choices"][0]["text"]

    def close(self) -> None:
        self.loop.run_until_complete(self.client.aclose())
        self.loop.close()
        self.thread.close()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with contextlib.closing(Service()) as service:
        logging.disable(logging.WARNING)
        yield service
        logging.disable(logging.NOTSET)


def test_random_requests(service):
    before = service.good()

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(requests(), min_size=AT_ONCE, max_size=AT_ONCE))
    def send(batch):
        for request, response in zip(batch, service.ask(*batch), strict=True):
            told = (request["url"], request["content"][:300], response.text[:300])
            assert response.status_code in (200, 400, 404, 413, 415), told
            if response.status_code != 200:
                assert response.json()["error"]["message"], told
            elif response.headers["content-type"].startswith("text/event-stream"):
                assert response.text.endswith("data: [DONE]\n\n"), told
            else:
                assert response.json()["choices"], told

    send()
    assert service.good() == before
    assert service.thread.is_alive
    assert service.thread.restarts == 0
    assert service.thread.load == 0
    print("statuses:", dict(service.statuses))
    assert service.statuses[200] > EXAMPLES
    assert service.statuses[400] > EXAMPLES


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": [{"role": "user", "content": "\ud83d"}], "max_tokens": 3}, "messages"),
        ({"messages": [{"role": "\ud83d", "content": "x"}]}, "messages"),
        ({"top_k": 99999999999}, "top_k"),
        ({"stop_token_ids": [99999999999]}, "stop_token_ids"),
        ({"stop_token_ids": [5000]}, "stop_token_ids"),
        ({"stop": "\ud83d"}, "stop"),
        ({"user": "\ud83d"}, "user"),
        ({"\ud83d": 1}, "\\ud83d"),
        ({"prompt": "\udfff", "messages": None}, "prompt"),
        ({"prompt": [258], "messages": None}, "prompt"),
        ({"prompt": ["x", "\ud800"], "messages": None}, "prompt"),
    ],
)
def test_what_no_engine_can_take_is_named(service, fields, named):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2} | fields
    url = "/v1/completions" if body.get("prompt") else "/v1/chat/completions"
    headers = {"Content-Type": "application/json"}
    (response,) = service.ask({"url": url, "content": json.dumps(body).encode(), "headers": headers})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == named
    assert named in response.json()["error"]["message"]
    assert service.good()
