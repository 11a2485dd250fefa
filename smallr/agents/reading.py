"""Reads replies strictly: each reading gives a value, or None and why there is none."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from smallr.agents.agent import Reading
from smallr.evals.extraction import after_reasoning
from smallr.sampling.requests import Sample

_FOREIGN = 0.2  # share of letters in scripts that a model text does not use, from which a text is in another language


def read_label(sample: Sample, labels: Sequence[str]) -> Reading[str]:
    """Reads a reply that is exactly one of some words, in lower case."""
    text = after_reasoning(sample.text).lower()
    word = text.strip().strip(".!:*_`\"'()[] \n\t")
    if word in labels:
        return word, ""
    found = set(re.findall(rf"\b({'|'.join(map(re.escape, labels))})\b", text))
    if not word:
        return None, "empty reply"
    return None, "several labels" if len(found) > 1 else "more than a label" if found else "no label"


def in_script_of(text: str, model: str) -> bool:
    """Returns whether the letters of a text are, but for a few, in scripts that another text uses.

    This tells Chinese from English, not French from English.
    """
    known = set(_scripts(model))
    scripts = _scripts(text)
    total = sum(scripts.values())
    return not known or not total or sum(scripts[name] for name in scripts if name not in known) <= _FOREIGN * total


def _scripts(text: str) -> Counter[str]:
    return Counter(map(_script, filter(str.isalpha, text)))


@functools.cache
def _script(letter: str) -> str:
    """Returns the first word of a letter's name: LATIN, CYRILLIC, CJK, …"""
    return unicodedata.name(letter, "UNKNOWN").split()[0]
