"""What the engine knows of a request on its way, and what it makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from smallr.sampling.requests import Request, Result, Sample, TokenLogprob, Usage
from smallr.sampling.text import TextStream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class Delta:
    """What a completion has grown by. The last one has a `finish_reason`."""

    sample: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: str | None = None


OnDelta = Callable[[Delta], None]


class Handle:
    """A submitted request.

    Attributes:
      result: None until all of its completions are done.
    """

    def __init__(self, request: Request, prompt: Sequence[int], on_delta: OnDelta | None, hook_slot: Any):
        self.request, self.prompt, self.on_delta, self.hook_slot = (
            request,
            np.asarray(prompt, np.int32),
            on_delta,
            hook_slot,
        )
        self.result: Result | None = None
        self.cancelled = False
        self._samples: dict[int, Sample] = {}

    def finish(self, number: int, sample: Sample) -> bool:
        """Takes a completion; whether it was the last one."""
        self._samples[number] = sample
        if len(self._samples) < self.request.params.n:
            return False
        samples = tuple(self._samples[number] for number in sorted(self._samples))
        written = sum(len(sample.token_ids) for sample in samples)
        self.result = Result(samples, Usage(len(self.prompt), written))
        return True


class Completion:
    """One completion being written."""

    def __init__(
        self,
        handle: Handle,
        number: int,
        tokenizer: PreTrainedTokenizerFast,
        stop_ids: frozenset[int],
        limit: int,
        key: np.ndarray,
    ):
        self.handle, self.number, self.stop_ids, self.limit, self.key = handle, number, stop_ids, limit, key
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, handle.request.params.stop)
        self._told = 0  # tokens that a callback has been given
        # Decoding token by token costs more than a decoding step on a fast device: only where somebody looks.
        self._is_watched = handle.on_delta is not None or bool(handle.request.params.stop)

    def add(self, token: int, logprob: float, top_ids: np.ndarray, top_logprobs: np.ndarray) -> None:
        """Takes the next token; sets `finish_reason` when it is the last."""
        self.tokens.append(token)
        wanted = self.handle.request.params.logprobs
        if wanted is not None:
            top = tuple(
                (self._piece(int(id)), float(value))
                for id, value in zip(top_ids[:wanted], top_logprobs[:wanted], strict=True)
                if np.isfinite(value)
            )
            self.logprobs.append(TokenLogprob(token, self._piece(token), float(logprob), top))
        if token in self.stop_ids:
            self.finish_reason = "stop"
        else:
            self._stream.add(token, decode=self._is_watched)
            if self._stream.stopped:
                self.finish_reason = "stop"
            elif len(self.tokens) >= self.limit:
                self.finish_reason = "length"
        if self.finish_reason:
            self._stream.close()

    def tell(self) -> None:
        """Gives the callback what is new."""
        if self.handle.on_delta is None:
            return
        begin, self._told = self._told, len(self.tokens)
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
        """The finished completion."""
        told = self.handle.request.params.logprobs is not None
        return Sample(self._stream.text, self.finish_reason, tuple(self.tokens), tuple(self.logprobs) if told else None)

    def _piece(self, token: int) -> str:
        return self._tokenizer.decode([token])
