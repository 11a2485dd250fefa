"""Bodies as clients of other servers send them, and what names the field that is wrong."""

from __future__ import annotations

import pytest

from smallr.language.serving import border
from smallr.language.serving.bodies import ChatBody, TextBody, parse
from smallr.language.serving.errors import BadRequest

HI = {"role": "user", "content": "hi"}
NEUTRAL = {
    "chat_template_kwargs": {}, "chat_template": None, "presence_penalty": 0, "repetition_penalty": 1,
    "return_token_ids": False, "detokenize": True, "best_of": 1, "documents": None, "guided_json": None, "tools": None,
    "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {}, "frequency_penalty": 0.0, "stop": [],
    "parallel_tool_calls": None, "modalities": ["text"], "audio": None, "stream_options": None, "metadata": {},
}  # fmt: skip
EMPTY = {"tool_calls": None, "function_call": None, "refusal": None, "annotations": [], "audio": None, "prefix": False}


def test_values_that_change_nothing():
    plain = parse(ChatBody, {"messages": [HI], "seed": 1}).requests(64)
    assert parse(ChatBody, {"messages": [HI | EMPTY], "seed": 1, **NEUTRAL}).requests(64) == plain
    for name, value in NEUTRAL.items():
        assert parse(ChatBody, {"messages": [HI], "seed": 1, name: value}).requests(64) == plain


@pytest.mark.parametrize(
    "field",
    [
        {"best_of": 2}, {"detokenize": 1}, {"return_token_ids": True}, {"echo": True}, {"tools": [{"type": "function"}]},
    ],
)  # fmt: skip
def test_values_that_would_change_something(field):
    with pytest.raises(BadRequest, match=f"^{next(iter(field))} is not supported"):
        parse(ChatBody, {"messages": [HI], **field})


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            {"content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "messages.1.content.0.type: String should match",
        ),
        ({"content": [{"type": "text"}]}, "messages.1.content.0.text: Field required"),
        ({"content": ["x"]}, "messages.1.content.0: Input should be a valid dictionary"),
        ({"content": 5}, "messages.1.content: Input should be a valid string, not 5"),
        ({"content": "x", "prefix": True}, "messages.1: prefix is not supported in a message"),
    ],
)
def test_what_is_wrong_in_a_message(message, told):
    with pytest.raises(BadRequest, match=told) as error:
        parse(ChatBody, {"messages": [HI, {"role": "user"} | message]})
    assert error.value.body()["error"]["param"] == "messages"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000])
@pytest.mark.parametrize(
    ("place", "field"), [("%s", "seed"), ("[1, %s]", "stop_token_ids"), ('{"a": [%s]}', "logit_bias")]
)
def test_numbers_beyond_all_bounds_are_named_with_their_field(number, place, field):
    body = '{"prompt": "x", "%s": %s}' % (field, place % number)  # noqa: UP031
    with pytest.raises(BadRequest, match=rf"^{field}.*: NaN, infinity and numbers of thousands of digits") as error:
        border._parse(body.encode())
    assert error.value.body()["error"]["param"] == field


def test_other_numbers_are_read_exactly():
    fields = border._parse(b'{"seed": 9007199254740993, "temperature": 0.1, "n": -0}')
    assert fields == {"seed": 9007199254740993, "temperature": 0.1, "n": 0}
    assert parse(TextBody, {"prompt": "x", "n": 2, "best_of": 2}).n == 2
