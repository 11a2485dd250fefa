"""Puts the numbers of a completion's segments on tokens.

A completion may be given as a list of segments, texts that follow one another: the steps of a solution, the turns of a
game. A segment column has a number for each of them, and one more for the end of the completion. A segment's number goes
to the token that has its last character, the last one to the completion's very last scored token (the end token, where
there is one). All other tokens get 0, and numbers that meet on a token are added. The texts are tokenised as one, so
that the tokens are those that a model writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeGuard


def is_segmented(completion: Any) -> TypeGuard[Sequence[str]]:
    """Returns whether a completion is a list of segments."""
    if isinstance(completion, str) or not isinstance(completion, Sequence) or not completion:
        return False
    return all(isinstance(segment, str) for segment in completion)


def segment_ends(segments: Sequence[str]) -> tuple[int, ...]:
    """Returns the character behind each segment in the joined text."""
    return tuple(itertools.accumulate(map(len, segments)))
