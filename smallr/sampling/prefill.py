"""Reads prompts into decode slots, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from smallr.sampling.completions import Completion
from smallr.sampling.programs import PrefillChunk, Programs
from smallr.sampling.prompt_logprobs import PromptScorer
from smallr.sampling.slot_cache import SlotCache
from smallr.sampling.weights import Weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Assigned(NamedTuple):
    """Represents a completion whose prompt is to be read into a slot, behind the tokens that are there already."""

    slot: int
    completion: Completion
    start: int


class Prefiller:
    """Reads prompts; the chunks of one are the same whatever is read beside it.

    Args:
      programs: of the engine.
      size: tokens of a chunk.
      rows: prompts that are read side by side.
      slots: number of decode slots.
      tokenizer: of the model.
    """

    def __init__(self, programs: Programs, size: int, rows: int, slots: int, tokenizer: PreTrainedTokenizerFast):
        self._programs, self._size, self._rows, self._slots = programs, size, rows, slots
        self._tokenizer = tokenizer

    def __call__(self, weights: Weights, cache: SlotCache, assigned: Sequence[Assigned]) -> None:
        """Reads the prompts of at most `rows` completions into their slots."""
        starts = [each.start for each in assigned]
        scorer = PromptScorer([each.completion.handle for each in assigned], self._tokenizer)
        while any(start < len(each.completion.handle.prompt) for start, each in zip(starts, assigned, strict=True)):
            chunk = self._chunk(assigned, starts)
            if scorer.is_busy:
                *state, logprobs = self._programs.score(weights, *cache.state, chunk, scorer.following(chunk))
                scorer.take(chunk, jax.device_get(logprobs))
            else:
                state = self._programs.prefill(weights, *cache.state, chunk)
            cache.take(*state)
            starts = [start + self._size for start in starts]
        scorer.finish()

    def nothing(self) -> PrefillChunk:
        """Returns a chunk of no prompt."""
        return self._chunk([], [])

    def _chunk(self, assigned: Sequence[Assigned], starts: Sequence[int]) -> PrefillChunk:
        chunk = PrefillChunk(
            np.full(self._rows, self._slots, np.int32),
            np.zeros((self._rows, self._size), np.int32),
            *(np.zeros(self._rows, np.int32) for _ in range(3)),
        )
        for row, (each, start) in enumerate(zip(assigned, starts, strict=True)):
            prompt = each.completion.handle.prompt
            tokens = prompt[start : start + self._size]
            if len(tokens):
                chunk.slot[row], chunk.start[row], chunk.count[row] = each.slot, start, len(tokens)
                chunk.tokens[row, : len(tokens)], chunk.longest[row] = tokens, len(prompt) - 1
        return chunk
