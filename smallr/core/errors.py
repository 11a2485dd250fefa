"""Defines the error that a user can mend: command lines print its message alone, everything else with a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Reports bad input, configuration or environment; the message names the place and says what to do."""


@contextlib.contextmanager
def panics_as_errors(what: str) -> Iterator[None]:
    """Turns a panic of a tokenizer's Rust code, which is no `Exception` and would end a thread, into a `UserError`.

    A regular expression of tokenizer.json that backtracks for too long on a text panics.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: the tokenizer fails: {error}") from error
