"""Collects the log-probs of prompts, for requests that ask for an echo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from smallr.sampling.completions import Handle
from smallr.sampling.programs import PrefillChunk, PromptLogprobs
from smallr.sampling.requests import TokenLogprob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def give_text(handle: Handle, tokenizer: PreTrainedTokenizerFast) -> None:
    """Gives a request that asks for an echo the text of its prompt."""
    if handle.request.params.echo and handle.prompt_text is None:
        is_text = isinstance(handle.request.prompt, str) and not handle.request.messages
        ids = [int(token) for token in handle.prompt if token >= 0]
        handle.prompt_text = handle.request.prompt if is_text else tokenizer.decode(ids)


class PromptScorer:
    """Gives the prompts that are read side by side their text and log-probs, where their requests ask for an echo.

    Args:
      handles: the request of each row of the chunks.
      tokenizer: of the model.
    """

    def __init__(self, handles: Sequence[Handle], tokenizer: PreTrainedTokenizerFast):
        self._handles, self._tokenizer = handles, tokenizer
        self._found = {row: [] for row, handle in enumerate(handles) if self.is_wanted(handle)}

    @staticmethod
    def is_wanted(handle: Handle) -> bool:
        """Returns whether the log-probs of a prompt are asked for and not there yet."""
        params = handle.request.params
        return params.echo and params.logprobs is not None and handle.prompt_logprobs is None

    @property
    def is_busy(self) -> bool:
        """Returns whether a row needs log-probs."""
        return bool(self._found)

    def following(self, chunk: PrefillChunk) -> Int[np.ndarray, "R P"]:
        """Returns for each token of a chunk the one behind it in its prompt; 0 behind the last."""
        following = np.zeros_like(chunk.tokens)
        for row in self._found:
            start = chunk.start[row] + 1
            tokens = self._handles[row].prompt[start : start + chunk.count[row]]
            following[row, : len(tokens)] = np.maximum(tokens, 0)  # soft tokens, which are below 0, have no logits
        return following

    def take(self, chunk: PrefillChunk, logprobs: PromptLogprobs) -> None:
        """Takes what the devices found for a chunk."""
        for row, found in self._found.items():
            prompt, most = self._handles[row].prompt, self._handles[row].request.params.logprobs
            for index in range(int(chunk.count[row])):
                place = int(chunk.start[row]) + index + 1
                if place < len(prompt):
                    ids, values = logprobs.top_tokens[row, index, :most], logprobs.top_logprobs[row, index, :most]
                    found.append(self._logprob(int(prompt[place]), float(logprobs.chosen[row, index]), ids, values))

    def finish(self) -> None:
        """Gives the requests what was found, and their text."""
        for row, found in self._found.items():
            first = int(self._handles[row].prompt[0])
            self._handles[row].prompt_logprobs = (TokenLogprob(first, self._decoded(first), None), *found)
        for handle in self._handles:
            give_text(handle, self._tokenizer)

    def _logprob(self, token: int, logprob: float, ids: np.ndarray, values: np.ndarray) -> TokenLogprob:
        likeliest = zip(ids.tolist(), values.tolist(), strict=True)
        top = tuple((self._decoded(id), value) for id, value in likeliest if np.isfinite(value))
        return TokenLogprob(token, self._decoded(token), logprob if token >= 0 else None, top)

    def _decoded(self, token: int) -> str:
        return self._tokenizer.decode([token]) if token >= 0 else ""
