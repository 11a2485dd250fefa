"""Bodies of requests in OpenAI's protocol: checked, and made ours. What is not supported is refused, not passed over."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from smallr.sampling.requests import Request, SamplingParams

TEXT_MAX_TOKENS = 16  # OpenAI's default for /v1/completions
MOST_CHOICES = 128  # n; prompts times n of one body

Tokens = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]


class BadRequest(Exception):
    """A request that is answered by an error in OpenAI's shape.

    Attributes:
      status: HTTP status code.
      param: the field that is to blame.
      code: for programs to read.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The reply."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """How a reply is streamed."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Body(BaseModel):
    """What both kinds of completion share."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = None
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0  # -1 is all too, as in vLLM
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    # Without meaning here.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    # Allowed only at the value that changes nothing.
    frequency_penalty: Literal[0] | None = 0
    presence_penalty: Literal[0] | None = 0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, fields: Any) -> Any:
        return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, dict) else fields

    def params(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """How completions are drawn. Without a seed each request gets a new one: asked twice, it is answered twice."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if "" in stop:
            raise BadRequest("stop: a stop string is empty", param="stop")
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            n=self.n,
            stop=stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            seed=secrets.randbelow(2**31) if self.seed is None else self.seed,
            logprobs=logprobs,
        )


class Part(BaseModel):
    """A part of a message's content."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A turn of a chat."""

    model_config = ConfigDict(extra="forbid")
    role: str
    content: str | list[Part]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Role and content as strings."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": content}


class TextFormat(BaseModel):
    """The one format of replies."""

    type: Literal["text"]


class ChatBody(Body):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs=true", param="top_logprobs")
        return self

    def requests(self, room: int) -> list[Request]:
        """The one request; without a limit it may write as much as the context has room for."""
        params = self.params(
            self.max_completion_tokens or self.max_tokens or room, (self.top_logprobs or 0) if self.logprobs else None
        )
        return [Request(messages=tuple(message.plain() for message in self.messages), params=params)]


class TextBody(Body):
    """POST /v1/completions."""

    prompt: str | Tokens | list[str] | list[Tokens]
    max_tokens: Count = TEXT_MAX_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: Literal[False] = False
    best_of: int | None = None
    suffix: Literal[""] | None = None

    def requests(self, room: int) -> list[Request]:
        """A request for each prompt."""
        if self.best_of not in (None, self.n):
            raise BadRequest("best_of is not supported, but as n", param="best_of")
        prompts = self.prompt if isinstance(self.prompt, list) and not _are_tokens(self.prompt) else [self.prompt]
        if not prompts or not all(prompts):
            raise BadRequest("prompt: a prompt is empty", param="prompt")
        if len(prompts) * self.n > MOST_CHOICES:
            raise BadRequest(f"prompt: more than {MOST_CHOICES} completions in one request", param="prompt")
        params = self.params(self.max_tokens, self.logprobs)
        return [
            Request(prompt=prompt if isinstance(prompt, str) else tuple(prompt), params=params) for prompt in prompts
        ]


def _are_tokens(prompt: list[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)


def parse(kind: type[Body], fields: Any) -> Any:
    """The checked body.

    Raises:
      BadRequest: names the first field that is wrong.
    """
    if not isinstance(fields, dict):
        raise BadRequest("the body is no JSON object")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else None
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            message = f"{place}: smallr does not know this field"
        else:
            message = f"{place}: {first['msg']}, not {first['input']!r:.100}"
        raise BadRequest(message, param=field) from None
