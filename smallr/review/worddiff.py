"""Compares two texts word by word."""

from __future__ import annotations

import difflib
import re

SAME, OWN = "same", "own"
_WORD = re.compile(r"\s*\S+|\s+\Z")
_LARGE = 1 << 22  # product of the numbers of words from which frequent words are not looked at


def own_words(text: str, other: str) -> list[tuple[str, str]]:
    """Cuts a text into parts that the other one has too, and parts of its own.

    Returns:
      (`SAME` or `OWN`, part); the parts together are the text.
    """
    words, others = _WORD.findall(text), _WORD.findall(other)
    bare = [[word.strip() for word in each] for each in (words, others)]
    matcher = difflib.SequenceMatcher(None, *bare, autojunk=len(words) * len(others) > _LARGE)
    parts = []
    for kind, start, stop, _, _ in matcher.get_opcodes():
        if start < stop:
            parts.append((SAME if kind == "equal" else OWN, "".join(words[start:stop])))
    return parts
