"""An engine without a model, whose words depend on the request and its seed; its steps can be held."""

from __future__ import annotations

import hashlib
import threading
import time

from smallr.core.errors import UserError
from smallr.sampling.completions import Delta, OnDelta
from smallr.sampling.requests import Request, Result, Sample, TokenLogprob, Usage

WORDS = [" red", " green", " blue", " näïve", " 8", "\n", " stop", " end"]
CONTEXT = 64


class FakeHandle:
    """A request in the engine; its samples grow a word a step."""

    def __init__(self, request: Request, on_delta: OnDelta | None):
        self.request, self.on_delta = request, on_delta
        self.result: Result | None = None
        self.exception: Exception | None = None
        self.submitted, self.started, self.first_token = time.monotonic(), None, None
        self.given = 0
        self.samples = [fake_sample(request, i) for i in range(request.params.n)]

    def advance(self) -> None:
        self.started = self.started or time.monotonic()
        self.first_token = self.first_token or time.monotonic()
        place = self.given
        self.given += 1
        for index, (sample, tokens) in enumerate(self.samples):
            if self.on_delta is not None and place < max(len(tokens), 1):
                now = tuple(tokens[place : place + 1])
                logprobs = None if sample.logprobs is None else now
                end = sample.finish_reason if self.given >= len(tokens) else None
                self.on_delta(Delta(index, "".join(t.token for t in now), (), logprobs, end))
        if self.given >= max(len(tokens) for _, tokens in self.samples):
            written = sum(len(tokens) for _, tokens in self.samples)
            self.result = Result(tuple(sample for sample, _ in self.samples), Usage(5, written))


class FakeEngine:
    """Decodes `slots` requests at a time.

    As the real one it ends a request whose callback raises, and keeps requests that have not begun over a restart.

    Attributes:
      may_step: cleared, steps wait.
      cancelled: requests that were given up.
      fails: number of the next steps that raise.
    """

    def __init__(self, decode_slots: int = 4):
        self.decode_slots = decode_slots
        self.handles: list[FakeHandle] = []
        self.cancelled: list[str] = []
        self.most = 0
        self.may_step = threading.Event()
        self.may_step.set()
        self.fails = 0

    codec = None  # no tests of tokens

    def encode(self, request: Request) -> str:
        if asked(request) == "too long":
            raise UserError("the prompt has 99 tokens, and the model's context is 64")
        if asked(request) == "cannot be encoded":
            raise TypeError("TextEncodeInput must be")
        return asked(request)

    def submit(self, request: Request, on_delta: OnDelta | None = None, *, encoded: str) -> FakeHandle:
        assert encoded == asked(request)
        self.handles.append(FakeHandle(request, on_delta))
        return self.handles[-1]

    def cancel(self, handle: FakeHandle) -> None:
        self.cancelled.append(asked(handle.request))
        self.handles.remove(handle)

    def step(self) -> None:
        self.may_step.wait(0.05)
        if self.fails:
            self.fails -= 1
            raise RuntimeError("out of memory")
        if not self.may_step.is_set():
            return
        running = self.handles[: self.decode_slots]
        self.most = max(self.most, len(running))
        for handle in running:
            try:
                handle.advance()
            except Exception as error:
                handle.result, handle.exception = Result(error=str(error)), error
        self.handles = [handle for handle in self.handles if handle.result is None]

    def restart(self, error: Exception) -> None:
        for handle in self.handles[: self.decode_slots]:
            handle.result, handle.exception = Result(error=str(error)), error
        self.handles = [handle for handle in self.handles if handle.result is None]


def asked(request: Request) -> str:
    """The prompt or the last message."""
    return request.messages[-1]["content"] if request.messages else str(request.prompt)


def fake_sample(request: Request, index: int) -> tuple[Sample, list[TokenLogprob]]:
    """The completion that the engine will give, and its tokens up to the stop."""
    params = request.params
    seed = (params.seed or 0) + index if params.temperature else 0
    drawn = f"{asked(request)} {seed}" + (f" {params.round}" if params.round else "")
    digest = hashlib.sha256(drawn.encode()).digest() * 8
    tokens = []
    for byte in digest[: params.max_tokens]:
        top = tuple((WORDS[(byte + i) % len(WORDS)], -0.5 - i) for i in range(params.logprobs or 0))
        tokens.append(TokenLogprob(byte, WORDS[byte % len(WORDS)], -0.5, top))
        if tokens[-1].token in params.stop:
            tokens.pop()
            reason = "stop"
            break
    else:
        reason = "length"
    text = "".join(token.token for token in tokens)
    return Sample(text, reason, logprobs=tuple(tokens) if params.logprobs is not None else None), tokens
