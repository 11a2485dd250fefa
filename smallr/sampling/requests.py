"""Requests to a language model and its results; the same for the local engine and for a server."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
MAX_SAMPLES = 2**16  # completions of one request
MAX_LOGPROBS = 20  # likeliest tokens whose log-probs can be asked for
MAX_TEMPERATURE = 100.0
MAX_PENALTY = 2.0  # of presence and frequency
MAX_REPETITION_PENALTY = 100.0
MAX_BIAS = 100.0
GRAMMARS = ("json", "regex", "choice", "grammar")


@dataclass(frozen=True)
class Grammar:
    """Says which texts a completion may be. Needs the extra `structured`.

    Attributes:
      kind: "json" for a JSON schema, "regex" for a regular expression that the whole text matches, "choice" for a JSON
        list of texts, "grammar" for a context-free grammar as Lark or GBNF writes it.
      text: the schema, the expression, the list or the grammar.
    """

    kind: str
    text: str

    def __post_init__(self) -> None:
        if self.kind not in GRAMMARS:
            raise ValueError(
                f"sampling: the kind of a grammar must be one of: {', '.join(GRAMMARS)}, not {self.kind!r}"
            )


@dataclass(frozen=True)
class SamplingParams:
    """Says how completions are drawn. Names and meanings are those of the OpenAI and vLLM interfaces, but for `round`.

    A draw is a function of the seed, the round, the prompt and the number of the sample. So another round draws anew,
    the same round can be repeated, and no two prompts share a stream of random numbers.
    """

    max_tokens: int = 256  # 0: the prompt is read, nothing is written
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 is all
    top_p: float = 1.0
    min_p: float = 0.0
    n: int = 1  # completions of one prompt
    stop: tuple[str, ...] = ()  # a completion ends before the first of these
    stop_token_ids: tuple[int, ...] = ()  # besides the model's own end tokens
    ignore_eos: bool = False
    seed: int | None = None  # None: a local model draws as by a seed of its own; a server draws anew each time
    round: int = 0  # of a method that samples the same prompts again and again
    logprobs: int | None = None  # None: none; 0: of the chosen tokens; k: of the k likeliest too
    # Subtracted from the logits of tokens that the completion has: once, and once for each time.
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # divides the positive logits of tokens of prompt and completion, multiplies others
    logit_bias: tuple[tuple[int, float], ...] = ()  # token ids, and what is added to their logits
    grammar: Grammar | None = None  # that the completion follows; a complete one ends
    echo: bool = False  # the result has the prompt too, with the log-probs of its tokens if `logprobs` is given

    def __post_init__(self) -> None:
        _check_whole("max_tokens", self.max_tokens, 0, INT32_MAX)
        _check_number("temperature", self.temperature, 0, MAX_TEMPERATURE)
        _check_whole("top_k", self.top_k, 0, INT32_MAX)
        _check_number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise ValueError("sampling: top_p must be above 0")
        _check_number("min_p", self.min_p, 0, 1)
        _check_whole("n", self.n, 1, MAX_SAMPLES)
        if isinstance(self.stop, str):
            raise ValueError(f"sampling: stop must be a tuple of texts, not the text {self.stop!r}")
        for stop in self.stop:
            if not isinstance(stop, str) or not stop:
                raise ValueError(f"sampling: stop must hold texts that are not empty, not {stop!r}")
        for token in self.stop_token_ids:
            _check_whole("stop_token_ids", token, 0, INT32_MAX)
        if self.seed is not None:
            _check_whole("seed", self.seed, -INT64_MAX - 1, INT64_MAX)
        _check_whole("round", self.round, 0, INT32_MAX)
        if self.logprobs is not None:
            _check_whole("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _check_number("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_number("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_number("repetition_penalty", self.repetition_penalty, 0, MAX_REPETITION_PENALTY)
        if self.repetition_penalty == 0:
            raise ValueError("sampling: repetition_penalty must be above 0")
        for token, bias in self.logit_bias:
            _check_whole("logit_bias", token, 0, INT32_MAX)
            _check_number("logit_bias", bias, -MAX_BIAS, MAX_BIAS)

    @property
    def has_penalties(self) -> bool:
        """Returns whether what was written changes the logits of what comes."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)


def _check_whole(name: str, value: Any, least: int, most: int) -> None:
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not least <= value <= most:
        raise ValueError(f"sampling: {name} must be a whole number from {least} to {most}, not {value!r}")


def _check_number(name: str, value: Any, least: float, most: float) -> None:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= value <= most:
        raise ValueError(f"sampling: {name} must be a number from {least:g} to {most:g}, not {value!r}")


@dataclass(frozen=True)
class Request:
    """Asks for completions of `messages` (chat: role and content) or of a `prompt` (plain text or token ids).

    Attributes:
      messages, prompt: one of the two.
      params: how completions are drawn.
      add_generation_prompt: the chat template opens an answer behind the messages.
      continue_final_message: the last message is continued. Where neither of the two is said, a last message of the
        assistant is continued, and behind any other an answer is opened.
      template_kwargs: variables of the chat template, e.g. enable_thinking.
    """

    messages: tuple[Mapping[str, str], ...] = ()
    prompt: str | tuple[int, ...] = ""
    params: SamplingParams = SamplingParams()
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.messages) == bool(self.prompt):
            raise ValueError("a request must have either messages or a prompt, and it must not be empty")
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError("add_generation_prompt and continue_final_message cannot both be true")


@dataclass(frozen=True)
class TokenLogprob:
    """Holds one token of a completion with its log-prob and the likeliest tokens in its place.

    Log-probs are in nats, of the model's own distribution at temperature 1.
    """

    token_id: int | None  # None where a server does not tell
    token: str
    logprob: float | None  # None for the first token of a prompt, which nothing comes before
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Sample:
    """Represents one completion. `finish_reason` is "stop" (an end token or a stop string) or "length"."""

    text: str
    finish_reason: str
    token_ids: tuple[int, ...] = ()  # empty where a server does not tell
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class Usage:
    """Counts the tokens of prompts and completions; `cached` results cost nothing a second time."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


@dataclass(frozen=True)
class Result:
    """Holds the completions of one request, in order; or no samples and `error`, which says what went wrong.

    `prompt_text` and `prompt_logprobs` are there where the request asked for an echo.
    """

    samples: Sequence[Sample] = ()
    usage: Usage = field(default_factory=Usage)
    error: str | None = None
    cached: bool = False
    prompt_text: str | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
