"""Defines the one error of the data layer, and the hint at the nearest choice."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from smallr.core.errors import UserError


class DataError(UserError):
    """Says that rows, a source or a data option must be changed by the user; the message says what and where."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns `; did you mean 'question'?`, or nothing when no choice is close."""
    found = difflib.get_close_matches(str(name), list(choices), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def shorten(value: object, limit: int = 80) -> str:
    """Returns the `repr` of a value, cut for a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
