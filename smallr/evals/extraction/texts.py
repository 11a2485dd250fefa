"""Extracts the short text that a text comes to."""

from __future__ import annotations

import re

from smallr.evals.extraction.places import STATED, answer_part, boxed

_QUOTES = " .!*_`\"'“”‘’"
_QUOTED = re.compile(r"(\*\*|[\"“`'‘*_])(.+?)(\*\*|[\"”`'’*_])(?!\w)")
_REASON = re.compile(r"[,;]?\s+(?:because|since|as|which|where|so that|i\.e\.|by|from|obtained)\s")
_REPEATED = re.compile(r"[,;]\s+(?:so|thus|therefore|hence)\s+(?:it is\s+)?")
_FULL_STOP = re.compile(r"(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bSt)(?<!\b[A-Z])[.!?](?=\s|\Z)")


def text(text: str) -> str | None:
    """Returns a short text: boxed, stated to be the answer, else the last line; in quotes, or up to the end of its sentence."""
    text = answer_part(text).strip()
    if box := boxed(text):
        return box
    stated = [match.end() for match in STATED.finditer(text)]
    lines = text[stated[-1] :].strip().splitlines() if stated else text.splitlines()[-1:]
    if not lines:
        return None
    line = lines[0].strip()[:1000]
    if (quoted := _QUOTED.match(line)) and quoted[2].strip():
        return quoted[2].strip()
    if not stated:
        return line or None
    for end in (_FULL_STOP, _REASON):
        if found := end.search(line):
            line = line[: found.start()]
    line, *again = _REPEATED.split(line, maxsplit=1)
    if again and " " not in again[0].strip() and again[0].strip(_QUOTES).lower() != line.strip(_QUOTES).lower():
        return None  # two answers
    if re.match(r"(?:not|n't)\b", line, re.IGNORECASE):
        return None
    return line.strip() or None
