"""Reads prompts into decode slots, chunk by chunk, many chunks side by side where many are to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from smallr.sampling.completions import Completion
from smallr.sampling.programs import PrefillChunk, Programs
from smallr.sampling.prompt_logprobs import PromptScorer, give_text
from smallr.sampling.slot_cache import SlotCache
from smallr.sampling.weights import Weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WIDE = 8  # chunks of a wide pass for each one of a narrow pass
# A wide pass takes as long as about so many narrow ones, so as many chunks must wait for it.
WORTH = 4


class Assigned(NamedTuple):
    """Represents a completion whose prompt is to be read into a slot, behind the tokens that are there already."""

    slot: int
    completion: Completion
    start: int


class _Piece(NamedTuple):
    """Represents a chunk of one prompt, and where it begins in that."""

    assigned: Assigned
    start: int


class Prefiller:
    """Reads prompts; the chunks of one are the same whatever is read beside it.

    Args:
      programs: of the engine.
      size: tokens of a chunk.
      rows: chunks that are read side by side where few are to be read.
      slots: number of decode slots.
      tokenizer: of the model.
    """

    def __init__(self, programs: Programs, size: int, rows: int, slots: int, tokenizer: PreTrainedTokenizerFast):
        self._programs, self._size, self._rows, self._slots = programs, size, rows, slots
        self._tokenizer = tokenizer

    def __call__(self, weights: Weights, cache: SlotCache, assigned: Sequence[Assigned]) -> None:
        """Reads the prompts of some completions into their slots, which differ."""
        scored, others = [], []
        for each in assigned:
            (scored if PromptScorer.is_wanted(each.completion.handle) else others).append(each)
        for first in range(0, len(scored), self._rows):
            self._score(weights, cache, scored[first : first + self._rows])
        self._read(weights, cache, others)

    def _read(self, weights: Weights, cache: SlotCache, assigned: Sequence[Assigned]) -> None:
        """Reads prompts of which no log-probs are wanted.

        A pass writes all its keys before any query looks, so chunks of one prompt may stand side by side in it.
        """
        pieces = [_Piece(each, start) for each in assigned for start in self._starts(each)]
        while pieces:
            rows = self._rows * (WIDE if len(pieces) >= self._rows * WORTH else 1)
            cache.take(*self._programs.prefill(weights, *cache.state, self._chunk(pieces[:rows], rows)))
            pieces = pieces[rows:]
        for each in assigned:
            give_text(each.completion.handle, self._tokenizer)

    def _score(self, weights: Weights, cache: SlotCache, assigned: Sequence[Assigned]) -> None:
        """Reads at most `rows` prompts and finds their log-probs."""
        scorer = PromptScorer([each.completion.handle for each in assigned], self._tokenizer)
        longest = max(len(each.completion.handle.prompt) - each.start for each in assigned)
        for offset in range(0, longest, self._size):
            chunk = self._chunk([_Piece(each, each.start + offset) for each in assigned], self._rows)
            *state, logprobs = self._programs.score(weights, *cache.state, chunk, scorer.following(chunk))
            scorer.take(chunk, jax.device_get(logprobs))
            cache.take(*state)
        scorer.finish()

    def nothing(self) -> PrefillChunk:
        """Returns a chunk of no prompt."""
        return self._chunk([], self._rows)

    def _starts(self, assigned: Assigned) -> range:
        return range(assigned.start, len(assigned.completion.handle.prompt), self._size)

    def _chunk(self, pieces: Sequence[_Piece], rows: int) -> PrefillChunk:
        """Returns the arrays of at most `rows` pieces; one that begins behind the end of its prompt is none."""
        chunk = PrefillChunk(
            np.full(rows, self._slots, np.int32),
            np.zeros((rows, self._size), np.int32),
            *(np.zeros(rows, np.int32) for _ in range(3)),
            np.zeros(rows, bool),
        )
        for row, ((slot, completion, _), start) in enumerate(pieces):
            prompt = completion.handle.prompt
            tokens = prompt[start : start + self._size]
            if len(tokens):
                chunk.slot[row], chunk.start[row], chunk.count[row] = slot, start, len(tokens)
                chunk.tokens[row, : len(tokens)], chunk.longest[row] = tokens, len(prompt) - 1
                chunk.is_last[row] = start + len(tokens) == len(prompt)
        return chunk
