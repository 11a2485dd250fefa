"""Proposes the tokens that come next by looking them up in the text so far (prompt lookup, a form of speculative decoding).

A text that repeats its prompt, as a rationale repeats its question, mostly goes on as it did the last time that its last few
tokens stood there. The decoder reads the proposed tokens in one pass and keeps those that it would have chosen itself, so a
greedy completion is that of plain decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from smallr.sampling.completions import Completion

LONGEST, SHORTEST = 3, 2  # tokens that must have stood there before; the longest run that is found counts


def look_up(text: Int[np.ndarray, "tokens"], count: int) -> Int[np.ndarray, "found"]:
    """Returns up to `count` tokens that followed the last earlier place of the text's last tokens; none if there is none."""
    for size in range(min(LONGEST, len(text) - 1), SHORTEST - 1, -1):
        runs = np.lib.stride_tricks.sliding_window_view(text[:-1], size)
        if len(places := np.flatnonzero((runs == text[-size:]).all(-1))):
            start = places[-1] + size
            return text[start : start + count]
    return text[:0]


class PromptLookup:
    """Proposes tokens for the decode slots of an engine.

    Args:
      count: of the tokens that one pass may add to a completion.
    """

    def __init__(self, count: int):
        self._count = count
        self._pending: dict[Completion, int] = {}

    @staticmethod
    def applies(completion: Completion) -> bool:
        """Returns whether a completion is greedy, with nothing that changes its logits."""
        return completion.handle.request.params.temperature == 0 and not completion.is_adjusted

    def propose(self, completions: Sequence[Completion | None]) -> Int[np.ndarray, "S N"] | None:
        """Returns tokens for each slot, -1 behind the last.

        Returns:
          None where plain decoding is to go on: a slot has penalties, a bias or a grammar, or fewer than half of the busy
          slots have a proposal, for whom all would pay.
        """
        proposals = np.full((len(completions), self._count), -1, np.int32)
        busy = {slot: each for slot, each in enumerate(completions) if each is not None}
        if any(each.is_adjusted for each in busy.values()):
            return None
        for slot, completion in busy.items():
            if self.applies(completion):
                found = self._of(completion)
                proposals[slot, : len(found)] = found
        return proposals if 2 * int((proposals[:, 0] >= 0).sum()) >= len(busy) else None

    def _of(self, completion: Completion) -> Int[np.ndarray, "found"]:
        """Returns the tokens for one completion. The first is certain if the last pass has told what comes next."""
        text = np.concatenate([completion.handle.prompt, np.asarray(completion.tokens, np.int32)])
        if (token := self._pending.get(completion)) is None:
            return look_up(text, self._count)
        after = look_up(np.append(text, np.int32(token)), self._count - 1)
        return np.concatenate([[token], after]) if len(after) else after

    def take(self, pending: Mapping[Completion, int]) -> None:
        """Notes the tokens that the last pass has found to come next; none of those before are of use any more."""
        self._pending = dict(pending)
