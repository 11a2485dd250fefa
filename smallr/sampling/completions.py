"""Requests inside the engine, and the completions that grow out of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, UInt32

from smallr.core.errors import UserError
from smallr.sampling.requests import Request, Result, Sample, TokenLogprob, Usage
from smallr.sampling.text import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from smallr.sampling.grammars import Constraint


@dataclasses.dataclass(frozen=True)
class Delta:
    """Holds what a completion has grown by. The last one has a `finish_reason`."""

    sample: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: str | None = None


OnDelta = Callable[[Delta], None]


class Handle:
    """Represents a submitted request.

    Attributes:
      prompt_text, prompt_logprobs: for a request that asks for an echo.
      submitted, started, first_token: when the request came, got a decode slot and had a token, by `time.monotonic`.
      result: None until all of its completions are finished, or until the request has failed.
      exception: what the request failed of, if that is no fault of its author; `result.error` says the same in words.
    """

    def __init__(self, request: Request, on_delta: OnDelta | None = None, hook_slot: Any = ()):
        self.request, self.on_delta, self.hook_slot = request, on_delta, hook_slot
        self.prompt: Int[np.ndarray, "tokens"] = np.zeros(0, np.int32)
        self.prompt_text: str | None = None
        self.prompt_logprobs: tuple[TokenLogprob, ...] | None = None
        self.submitted, self.started, self.first_token = time.monotonic(), None, None
        self.result: Result | None = None
        self.exception: Exception | None = None
        self._samples: dict[int, Sample] = {}

    def finish(self, number: int, sample: Sample) -> None:
        """Takes a finished completion; with the last one the request has its result."""
        self._samples[number] = sample
        if len(self._samples) == self.request.params.n:
            samples = tuple(self._samples[number] for number in sorted(self._samples))
            count = sum(len(sample.token_ids) for sample in samples)
            echo = {"prompt_text": self.prompt_text, "prompt_logprobs": self.prompt_logprobs}
            self.result = Result(samples, Usage(len(self.prompt), count), **echo)

    def fail(self, error: Exception) -> None:
        """Ends the request with an error, unless it has a result."""
        if self.result is None:
            is_users = isinstance(error, UserError)
            self.exception = None if is_users else error
            self.result = Result(error=str(error) if is_users else f"{type(error).__name__}: {error}")


class Completion:
    """Represents one completion while it grows.

    Args:
      handle: the request that it belongs to.
      number: of the sample in its request.
      tokenizer: of the model.
      stop_ids: tokens that end it.
      limit: the number of tokens at which it ends.
      key: of its random numbers.
      constraint: at the beginning of its grammar, if it has one.
    """

    def __init__(
        self,
        handle: Handle,
        number: int,
        tokenizer: PreTrainedTokenizerFast,
        stop_ids: frozenset[int],
        limit: int,
        key: UInt32[np.ndarray, "2"],
        constraint: Constraint | None = None,
    ):
        params = handle.request.params
        self.constraint = constraint
        self.is_adjusted = bool(constraint is not None or params.has_penalties or params.logit_bias)
        self.handle, self.number, self.stop_ids, self.limit, self.key = handle, number, stop_ids, limit, key
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, params.stop)
        self._reported = 0  # tokens that the callback has been given
        # Decoding token by token costs more than a decoding step on a fast device: only where somebody looks.
        self._is_watched = handle.on_delta is not None or bool(params.stop)

    def add(
        self, token: int, logprob: float, top_ids: Int[np.ndarray, "TOP"], top_logprobs: Float[np.ndarray, "TOP"]
    ) -> None:
        """Takes the next token; sets `finish_reason` when it is the last."""
        self.tokens.append(token)
        wanted = self.handle.request.params.logprobs
        if wanted is not None:
            top = tuple(
                (self._decoded(int(id)), float(value))
                for id, value in zip(top_ids[:wanted], top_logprobs[:wanted], strict=True)
                if np.isfinite(value)
            )
            self.logprobs.append(TokenLogprob(token, self._decoded(token), float(logprob), top))
        if token in self.stop_ids:
            self.finish_reason = "stop"
        else:
            is_complete = self.constraint is not None and self.constraint.take(token)
            self._stream.add(token, decode=self._is_watched)
            if self._stream.stopped or is_complete:
                self.finish_reason = "stop"
            elif len(self.tokens) >= self.limit:
                self.finish_reason = "length"
        if self.finish_reason:
            self._stream.close()

    def begin(self) -> None:
        """Tells the callback of the prompt, if that is echoed. A completion that may write nothing ends here."""
        handle = self.handle
        if handle.on_delta is not None and handle.prompt_text is not None:
            handle.on_delta(Delta(self.number, handle.prompt_text, (), handle.prompt_logprobs))
        if self.limit == 0:
            self.finish_reason = "length"

    def report(self) -> None:
        """Gives the callback what is new."""
        if self.handle.on_delta is None:
            return
        begin, self._reported = self._reported, len(self.tokens)
        self.handle.on_delta(
            Delta(
                self.number,
                self._stream.take(final=self.finish_reason is not None),
                tuple(self.tokens[begin:]),
                None if self.handle.request.params.logprobs is None else tuple(self.logprobs[begin:]),
                self.finish_reason,
            )
        )

    def sample(self) -> Sample:
        """Returns the finished completion."""
        logprobs = None if self.handle.request.params.logprobs is None else tuple(self.logprobs)
        return Sample(self._stream.text, self.finish_reason, tuple(self.tokens), logprobs)

    def _decoded(self, token: int) -> str:
        return self._tokenizer.decode([token])
