"""The host's side of the slots: who sits where, and what each slot's cache holds."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Int

from smallr.sampling.choice import Rules
from smallr.sampling.completions import Completion
from smallr.sampling.programs import Slots

STOPS = 8  # stop tokens that the devices know; more are found by the host, some steps later


class SlotTable:
    """Numpy mirrors of `Slots`, and for each slot the tokens of the prompt whose keys and values its cache holds."""

    def __init__(self, count: int, piece: int):
        self.slots = Slots(
            alive=np.zeros(count, bool),
            length=np.zeros(count, np.int32),
            written=np.zeros(count, np.int32),
            limit=np.zeros(count, np.int32),
            longest=np.zeros(count, np.int32),
            stop=np.full((count, STOPS), -1, np.int32),
            tell=np.full(count, -1, np.int32),
            rules=Rules(
                temperature=np.zeros(count, np.float32),
                top_k=np.zeros(count, np.int32),
                top_p=np.ones(count, np.float32),
                min_p=np.zeros(count, np.float32),
                key=np.zeros((count, 2), np.uint32),
            ),
        )
        self.completions: list[Completion | None] = [None] * count
        self._held: list[Int[np.ndarray, "tokens"]] = [np.zeros(0, np.int32)] * count
        self._piece = piece

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def free(self) -> list[int]:
        """Slots without a completion."""
        return [slot for slot, completion in enumerate(self.completions) if completion is None]

    @property
    def busy(self) -> list[int]:
        """The others."""
        return [slot for slot, completion in enumerate(self.completions) if completion is not None]

    def place(self, prompt: Int[np.ndarray, "tokens"]) -> tuple[int, int, int]:
        """(a free slot, a slot whose cache begins as this prompt does, for how many tokens).

        The number is a multiple of the pieces in which prompts are read, and below the prompt's length: what is not
        shared is read in the same pieces as if nothing were, so that sharing changes no bit.
        """
        shared = [self._shared(held, prompt) for held in self._held]
        best = max(shared)
        free = self.free
        # A free slot that already holds the beginning is taken as it is; else one that others may profit from least.
        slot = next((slot for slot in free if shared[slot] == best), None)
        if slot is None or best == 0:
            slot = min(free, key=lambda slot: len(self._held[slot]))
        source = slot if shared[slot] == best else shared.index(best)
        return slot, source, best

    def seat(self, slot: int, completion: Completion) -> None:
        """Gives a slot to a completion whose prompt is about to be read, over what the cache held."""
        slots, params = self.slots, completion.handle.request.params
        prompt = completion.handle.prompt
        self.completions[slot] = completion
        self._held[slot] = prompt[:0]
        stops = sorted(completion.stop_ids)[:STOPS]
        slots.length[slot], slots.longest[slot] = len(prompt), len(prompt) - 1
        slots.written[slot], slots.limit[slot] = 0, completion.limit
        slots.stop[slot] = -1
        slots.stop[slot, : len(stops)] = stops
        slots.tell[slot] = -1 if params.logprobs is None else params.logprobs
        slots.alive[slot] = True
        rules = slots.rules
        rules.temperature[slot], rules.top_k[slot] = params.temperature, params.top_k
        rules.top_p[slot], rules.min_p[slot], rules.key[slot] = params.top_p, params.min_p, completion.key

    def hold(self, slot: int) -> None:
        """The prompt of a slot has been read, and others may share it."""
        self._held[slot] = self.completions[slot].handle.prompt

    def leave(self, slot: int) -> None:
        """Frees a slot; its cache still holds the prompt."""
        self.completions[slot] = None
        self.slots.alive[slot] = False

    def forget(self) -> None:
        """The caches are worth nothing any more."""
        self._held = [held[:0] for held in self._held]

    def arguments(self) -> Slots:
        """A copy: a program that runs on may still read what it was given."""
        return jax.tree.map(np.copy, self.slots)

    def _shared(self, held: Int[np.ndarray, "held"], prompt: Int[np.ndarray, "tokens"]) -> int:
        length = min(len(held), len(prompt) - 1)
        differ = np.flatnonzero(held[:length] != prompt[:length])
        same = int(differ[0]) if len(differ) else length
        return same // self._piece * self._piece
