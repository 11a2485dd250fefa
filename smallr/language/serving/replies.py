"""Writes replies in OpenAI's protocol, whole and in chunks."""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from smallr.sampling.requests import Result, Sample, TokenLogprob, Usage


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes the replies to one request.

    Attributes:
      chat: the kind of completion.
      model: the model's name.
    """

    chat: bool
    model: str
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(12))
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def whole(self, results: Sequence[Result], extra: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """Returns the reply with all choices of all prompts; `extra` are further fields of each choice, or none."""
        samples = [_with_prompt(sample, result) for result in results for sample in result.samples]
        choices = [self._choice(index, sample) for index, sample in enumerate(samples)]
        for choice, fields in zip(choices, extra, strict=False):
            choice |= fields
        usage = sum((result.usage for result in results), Usage())
        return self._frame("") | {"choices": choices, "usage": usage_fields(usage)}

    def opening(self, index: int) -> dict[str, Any]:
        """Returns the first chunk of a chat's choice, which says whose turn it is."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}})

    def growth(self, index: int, text: str, logprobs: Sequence[TokenLogprob] | None, offset: int) -> dict[str, Any]:
        """Returns a chunk with more text, which begins at the character `offset` of the choice."""
        written = {"delta": {"content": text}} if self.chat else {"text": text}
        return self._chunk(index, {**written, "logprobs": self._logprobs(logprobs, offset)})

    def ending(self, index: int, finish_reason: str, extra: Mapping[str, Any] = {}) -> dict[str, Any]:
        """Returns the last chunk of a choice, with further fields."""
        written = {"delta": {}} if self.chat else {"text": ""}
        return self._chunk(index, {**written, "finish_reason": finish_reason, **extra})

    def usage(self, usage: Usage) -> dict[str, Any]:
        """Returns the chunk after all others, which has no choice."""
        return self._frame(".chunk") | {"choices": [], "usage": usage_fields(usage)}

    def _frame(self, part: str) -> dict[str, Any]:
        if self.chat:
            head = {"id": f"chatcmpl-{self.id}", "object": f"chat.completion{part}"}
        else:
            head = {"id": f"cmpl-{self.id}", "object": "text_completion"}
        return head | {"created": self.created, "model": self.model}

    def _chunk(self, index: int, choice: dict[str, Any]) -> dict[str, Any]:
        return self._frame(".chunk") | {"choices": [{"index": index, "logprobs": None, "finish_reason": None} | choice]}

    def _choice(self, index: int, sample: Sample) -> dict[str, Any]:
        message = {"message": {"role": "assistant", "content": sample.text}} if self.chat else {"text": sample.text}
        logprobs = self._logprobs(sample.logprobs, 0)
        return {"index": index, **message, "logprobs": logprobs, "finish_reason": sample.finish_reason}

    def _logprobs(self, logprobs: Sequence[TokenLogprob] | None, offset: int) -> dict[str, Any] | None:
        if logprobs is None:
            return None
        if self.chat:
            return {"content": [_chat_logprob(each) for each in logprobs], "refusal": None}
        offsets = []
        for each in logprobs:
            offsets.append(offset)
            offset += len(each.token)
        return {
            "tokens": [each.token for each in logprobs],
            "token_logprobs": [_finite(each.logprob) for each in logprobs],
            "top_logprobs": [_likeliest(each) for each in logprobs],
            "text_offset": offsets,
        }


def _with_prompt(sample: Sample, result: Result) -> Sample:
    """Returns a completion with its prompt before it, where an echo was asked for."""
    if result.prompt_text is None:
        return sample
    logprobs = None if sample.logprobs is None else (*(result.prompt_logprobs or ()), *sample.logprobs)
    return dataclasses.replace(sample, text=result.prompt_text + sample.text, logprobs=logprobs)


def _likeliest(each: TokenLogprob) -> dict[str, float] | None:
    """Returns the likeliest tokens and, as OpenAI and vLLM have it, the chosen one; None for the first of a prompt.

    Of tokens with the same text the likeliest is named, so that the chosen one is the largest only if it was.
    """
    if each.logprob is None:
        return None
    found: dict[str, float] = {}
    for token, logprob in (*each.top, (each.token, each.logprob)):
        found.setdefault(token, _finite(logprob))
    return found


def _chat_logprob(each: TokenLogprob) -> dict[str, Any]:
    def entry(token: str, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": _finite(logprob), "bytes": list(token.encode("utf-8", "replace"))}

    return entry(each.token, each.logprob) | {"top_logprobs": [entry(*top) for top in each.top]}


def _finite(logprob: float | None) -> float | None:
    """Replaces what JSON cannot write by OpenAI's number for the most unlikely."""
    return logprob if logprob is None or math.isfinite(logprob) else -9999.0


def usage_fields(usage: Usage) -> dict[str, int]:
    """Counts tokens as OpenAI does."""
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": total,
    }


def sse(fields: dict[str, Any] | str) -> str:
    """Writes a server-sent event."""
    return f"data: {fields if isinstance(fields, str) else json.dumps(fields)}\n\n"
