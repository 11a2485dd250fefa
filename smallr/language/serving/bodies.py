"""Checks the bodies of requests in OpenAI's protocol, and turns them into requests to the engine.

What smallr does not support is refused by name, unless it has the value that changes nothing. A null is a field that
is not there.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from smallr.language.serving.errors import BadRequest
from smallr.language.serving.structured import Fields, Guided
from smallr.sampling.requests import (
    INT32_MAX,
    INT64_MAX,
    MAX_BIAS,
    MAX_LOGPROBS,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_TEMPERATURE,
    Request,
    SamplingParams,
)

TEXT_MAX_TOKENS = 16  # OpenAI's default for /v1/completions
MAX_CHOICES = 128  # n; prompts times n of one body
MAX_STOPS, MAX_STOP_LENGTH, MAX_STOP_IDS = 16, 256, 128
MAX_BIASES = 1024

TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
Tokens = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Count = Annotated[int, Field(ge=1, le=INT32_MAX)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
Biases = Annotated[
    dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]],
    Field(max_length=MAX_BIASES),
]

# Fields that are not supported, each with the values that change nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "length_penalty": (1,),
    "echo": (False,),  # of a chat
    "suffix": ("",),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "bad_words": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),  # without tools
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "best_of": (1,),  # of a chat
    "return_token_ids": (False,),
    "detokenize": (True,),
}
# Fields that have no meaning here, whatever they say.
IGNORED = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "parallel_tool_calls", "priority", "request_id", "guided_decoding_backend",
    }
)  # fmt: skip
# What a client's `message.model_dump()` adds to a message; null or empty it says nothing.
EMPTY_IN_MESSAGES = (
    "tool_calls", "function_call", "refusal", "annotations", "audio", "reasoning", "reasoning_content", "prefix",
)  # fmt: skip
_UNION = re.compile(r"str|int|list\[.*|constrained-.*|function-.*|nullable\[.*")  # pydantic's names of alternatives


class StreamOptions(Fields):
    """Says how a reply is streamed."""

    include_usage: bool = False
    include_obfuscation: bool = False  # without meaning here: nothing is added to chunks


class Body(Guided):
    """Holds the fields that both kinds of completion share."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] = 0  # -1 is all too, as in vLLM
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    seed: Annotated[int, Field(ge=-INT64_MAX - 1, le=INT64_MAX)] | None = None
    round: Annotated[int, Field(ge=0, le=INT32_MAX)] = 0
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_IDS, fail_fast=True)] | None = None
    ignore_eos: bool = False
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=MAX_REPETITION_PENALTY)] = 1.0
    logit_bias: Biases = Field(default_factory=dict)
    stream: bool = False
    stream_options: StreamOptions | None = None

    def params(self, max_tokens: int, logprobs: int | None, echo: bool = False) -> SamplingParams:
        """Returns how completions are drawn. Without a seed each request gets a new one, so each is drawn anew."""
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            n=self.n,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            seed=secrets.randbelow(2**31) if self.seed is None else self.seed,
            round=self.round,
            logprobs=logprobs,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in self.logit_bias.items()),
            grammar=self.grammar(),
            echo=echo,
        )


class Part(Fields):
    """Is a part of a message's content; only text is supported."""

    type: Annotated[str, Field(pattern="^text$")]
    text: str


class Message(Fields):
    """Is a turn of a chat."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | Annotated[list[Part], Field(fail_fast=True)]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        for name in EMPTY_IN_MESSAGES:
            if fields.get(name) not in (None, False, [], "", {}):
                raise ValueError(f"{name} is not supported in a message")
        return {k: v for k, v in fields.items() if k not in EMPTY_IN_MESSAGES}

    def plain(self) -> dict[str, str]:
        """Returns role and content as strings."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class Conversation(Fields):
    """Holds messages, and how the chat template writes them."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _either(self) -> Self:
        if self.add_generation_prompt and self.continue_final_message:
            raise BadRequest(
                "continue_final_message and add_generation_prompt cannot both be true", param="continue_final_message"
            )
        return self

    def request(self, params: SamplingParams | None = None) -> Request:
        """Returns the request; what is not said, the last message decides."""
        return Request(
            messages=tuple(message.plain() for message in self.messages),
            params=params or SamplingParams(),
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            template_kwargs=self.chat_template_kwargs,
        )


class ChatBody(Body, Conversation):
    """Is the body of POST /v1/chat/completions."""

    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs=true", param="top_logprobs")
        return self

    def requests(self, room: int) -> list[Request]:
        """Returns the one request; without a limit it may write as much as the context has room for."""
        if len(self.messages) > room:
            raise BadRequest(f"messages: {len(self.messages)} do not fit into {room} tokens", param="messages")
        params = self.params(
            self.max_completion_tokens or self.max_tokens or room, (self.top_logprobs or 0) if self.logprobs else None
        )
        return [self.request(params)]


class TextBody(Body):
    """Is the body of POST /v1/completions."""

    prompt: (
        str
        | Tokens
        | Annotated[list[str], Field(max_length=MAX_CHOICES, fail_fast=True)]
        | Annotated[list[Tokens], Field(max_length=MAX_CHOICES, fail_fast=True)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=INT32_MAX)] = TEXT_MAX_TOKENS
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: int | None = None

    def requests(self, room: int) -> list[Request]:
        """Returns a request for each prompt."""
        if self.best_of not in (None, self.n):
            raise BadRequest("best_of must be n, or left out", param="best_of")
        prompts = self.prompt if isinstance(self.prompt, list) and not _are_tokens(self.prompt) else [self.prompt]
        if not prompts or not all(prompts):
            raise BadRequest("prompt: a prompt is empty", param="prompt")
        if len(prompts) * self.n > MAX_CHOICES:
            raise BadRequest(f"prompt: more than {MAX_CHOICES} completions in one request", param="prompt")
        params = self.params(self.max_tokens, self.logprobs, self.echo)
        return [
            Request(prompt=prompt if isinstance(prompt, str) else tuple(prompt), params=params) for prompt in prompts
        ]


class TokenizeText(Fields):
    """Is the body of POST /tokenize with a text."""

    model: str | None = None
    prompt: Annotated[str, Field(min_length=1)]
    add_special_tokens: bool = True
    return_token_strs: bool = False

    def request(self) -> Request:
        """Returns a request with this prompt."""
        return Request(prompt=self.prompt)


class TokenizeChat(Conversation):
    """Is the body of POST /tokenize with messages."""

    model: str | None = None
    add_special_tokens: bool = False
    return_token_strs: bool = False


class Detokenize(Fields):
    """Is the body of POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


def _are_tokens(prompt: list[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)


def parse(kind: type[Fields], fields: Mapping[str, Any]) -> Any:
    """Returns the checked body.

    Raises:
      BadRequest: names the first field that is wrong.
    """
    wanted: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None or name in IGNORED:
            continue
        if name in kind.model_fields:
            wanted[name] = value
        elif name not in NEUTRAL:
            raise BadRequest(f"{name}: smallr does not know this field", param=name)
        elif not _is_one_of(value, NEUTRAL[name]):
            values = " or ".join(repr(each) for each in NEUTRAL[name])
            raise BadRequest(f"{name} is not supported: it must be {values}, or be left out", param=name)
    try:
        return kind.model_validate(wanted)
    except ValidationError as error:
        raise _named(error) from None


def blamed(error: str) -> BadRequest:
    """Returns the engine's error as the request's, with the field that the message begins with."""
    field = error.partition(":")[0].partition("[")[0]
    is_field = any(field in kind.model_fields for kind in (ChatBody, TextBody, Detokenize))
    return BadRequest(error, param=field if is_field else None, code="invalid_request")


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Compares as `in` does, but true is not 1."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed)


def _named(error: ValidationError) -> BadRequest:
    """Returns the first thing that pydantic found, with the path of the field."""
    found = error.errors(include_url=False)
    # Of a list that may also be a string, what is wrong in the list.
    first = next(
        (each for each in found if not (each["type"] == "string_type" and isinstance(each["input"], list))), found[0]
    )
    field = str(first["loc"][0]) if first["loc"] else None
    place = ".".join(str(part) for part in first["loc"] if not (isinstance(part, str) and _UNION.fullmatch(part)))
    if first["type"] == "extra_forbidden":
        return BadRequest(f"{place}: smallr does not know this field", param=field)
    if first["type"] == "value_error":
        return BadRequest(f"{place}: {first['ctx']['error']}", param=field)
    return BadRequest(f"{place}: {first['msg']}, not {first['input']!r:.100}", param=field)
