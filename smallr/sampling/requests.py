"""What is asked of a language model, and what comes back; the same for the local engine and for a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

FINISH_REASONS = ("stop", "length")


@dataclass(frozen=True)
class SamplingParams:
    """How completions are drawn. Names and meanings are those of the OpenAI and vLLM interfaces."""

    max_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 is all
    top_p: float = 1.0
    min_p: float = 0.0
    n: int = 1  # completions of one prompt
    stop: tuple[str, ...] = ()  # a completion ends before the first of these
    stop_token_ids: tuple[int, ...] = ()  # besides the model's own end tokens
    ignore_eos: bool = False
    seed: int | None = None  # None: derived from the request's content
    logprobs: int | None = None  # None: none; 0: of the chosen tokens; k: of the k likeliest too

    def __post_init__(self) -> None:
        limits = {
            "max_tokens": self.max_tokens >= 1,
            "temperature": self.temperature >= 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "n": self.n >= 1,
            "logprobs": self.logprobs is None or 0 <= self.logprobs <= 20,
        }
        for name, holds in limits.items():
            if not holds:
                raise ValueError(f"sampling: {name}={getattr(self, name)!r} is out of range")


@dataclass(frozen=True)
class Request:
    """One prompt: either `messages` (chat: role and content) or `prompt` (plain text or token ids)."""

    messages: tuple[Mapping[str, str], ...] = ()
    prompt: str | tuple[int, ...] = ""
    params: SamplingParams = SamplingParams()

    def __post_init__(self) -> None:
        if bool(self.messages) == bool(self.prompt):
            raise ValueError("a request has either messages or a prompt, and it has one of them")


@dataclass(frozen=True)
class TokenLogprob:
    """A token of a completion, its log-prob (nats, of the model's own distribution at temperature 1) and the likeliest ones."""

    token_id: int | None  # None where a server does not tell
    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Sample:
    """One completion. `finish_reason` is "stop" (an end token or a stop string) or "length"."""

    text: str
    finish_reason: str
    token_ids: tuple[int, ...] = ()  # empty where a server does not tell
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens read and written; `cached` results cost nothing a second time."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


@dataclass(frozen=True)
class Result:
    """Completions of one request, in order; or `error`, what went wrong after all retries, with no samples."""

    samples: Sequence[Sample] = ()
    usage: Usage = field(default_factory=Usage)
    error: str | None = None
    cached: bool = False
