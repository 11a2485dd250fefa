"""Keeps the host's side of the decode slots: which completion has which slot, and what each slot's cache holds."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int

from smallr.sampling.choice import Rules
from smallr.sampling.completions import Completion
from smallr.sampling.programs import DecodeSlots

STOPS = 8  # stop tokens that the devices know; more are found by the host, some steps later
LEAST_TEMPERATURE = (
    1e-6  # a smaller one, and a smaller top_p, would vanish or overflow in float32; the draw is the same
)
LEAST_TOP_P = 1e-6


class SlotTable:
    """Mirrors `DecodeSlots` in numpy, and keeps for each slot the tokens of the prompt that its cache holds.

    Args:
      count: number of decode slots.
      chunk: tokens of a prefill chunk.
    """

    def __init__(self, count: int, chunk: int):
        self.slots = DecodeSlots(
            alive=np.zeros(count, bool),
            length=np.zeros(count, np.int32),
            generated=np.zeros(count, np.int32),
            limit=np.zeros(count, np.int32),
            longest=np.zeros(count, np.int32),
            stop=np.full((count, STOPS), -1, np.int32),
            logprobs=np.full(count, -1, np.int32),
            rules=Rules(
                temperature=np.zeros(count, np.float32),
                top_k=np.zeros(count, np.int32),
                top_p=np.ones(count, np.float32),
                min_p=np.zeros(count, np.float32),
                key=np.zeros((count, 2), np.uint32),
            ),
        )
        self.completions: list[Completion | None] = [None] * count
        self._cached: list[Int[np.ndarray, "tokens"]] = [np.zeros(0, np.int32)] * count
        self._chunk = chunk

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def free(self) -> list[int]:
        """Returns slots without a completion."""
        return [slot for slot, completion in enumerate(self.completions) if completion is None]

    @property
    def busy(self) -> list[int]:
        """Returns slots with a completion."""
        return [slot for slot, completion in enumerate(self.completions) if completion is not None]

    def choose(self, prompt: Int[np.ndarray, "tokens"]) -> tuple[int, int, int]:
        """Chooses a free slot for a prompt, and a slot whose cache begins as the prompt does.

        Returns:
          The free slot, the other slot, and the number of tokens that they share. The number is a multiple of the
          prefill chunk and below the prompt's length: what is not shared is read in the same chunks as if nothing
          were, so that sharing changes no bit.
        """
        shared = [self._shared(cached, prompt) for cached in self._cached]
        best = max(shared)
        free = self.free
        # A free slot that already holds the beginning is taken as it is; else one that others may profit from least.
        slot = next((slot for slot in free if shared[slot] == best), None)
        if slot is None or best == 0:
            slot = min(free, key=lambda slot: len(self._cached[slot]))
        source = slot if shared[slot] == best else shared.index(best)
        return slot, source, best

    def profits(self, prompt: Int[np.ndarray, "tokens"], others: Sequence[Int[np.ndarray, "others"]]) -> bool:
        """Returns whether a prompt begins as one of these others for longer than as anything that the caches hold."""
        best = max((self._shared(other, prompt) for other in others), default=0)
        return best > max(self._shared(cached, prompt) for cached in self._cached)

    def assign(self, slot: int, completion: Completion) -> None:
        """Gives a slot to a completion whose prompt is about to be read, over what the cache held."""
        slots, params = self.slots, completion.handle.request.params
        prompt = completion.handle.prompt
        stops = sorted(completion.stop_ids)[:STOPS]
        self._cached[slot] = prompt[:0]
        slots.length[slot], slots.longest[slot] = len(prompt), len(prompt) - 1
        slots.generated[slot], slots.limit[slot] = 0, completion.limit
        slots.stop[slot] = -1
        slots.stop[slot, : len(stops)] = stops
        slots.logprobs[slot] = -1 if params.logprobs is None else params.logprobs
        rules = slots.rules
        rules.temperature[slot] = max(params.temperature, LEAST_TEMPERATURE) if params.temperature else 0
        rules.top_k[slot], rules.top_p[slot] = params.top_k, max(params.top_p, LEAST_TOP_P)
        rules.min_p[slot], rules.key[slot] = params.min_p, completion.key
        slots.alive[slot] = True
        self.completions[slot] = completion  # last: a completion that cannot be assigned leaves the slot free

    def retain(self, slot: int, prompt: Int[np.ndarray, "tokens"]) -> None:
        """Notes that a slot's cache holds a prompt, whose beginning later ones may share."""
        self._cached[slot] = prompt

    def release(self, slot: int) -> None:
        """Frees a slot; its cache still holds the prompt."""
        self.completions[slot] = None
        self.slots.alive[slot] = False

    def forget(self) -> None:
        """Forgets what the caches hold: it is of no use any more."""
        self._cached = [cached[:0] for cached in self._cached]

    def arguments(self) -> DecodeSlots:
        """Returns a copy: a program that runs on may still read what it was given."""
        return jax.tree.map(np.copy, self.slots)

    def _shared(self, cached: Int[np.ndarray, "cached"], prompt: Int[np.ndarray, "tokens"]) -> int:
        length = min(len(cached), len(prompt) - 1)
        differ = np.flatnonzero(cached[:length] != prompt[:length])
        same = int(differ[0]) if len(differ) else length
        return same // self._chunk * self._chunk
