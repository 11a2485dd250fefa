"""Reads single values of rows: text, numbers, labels."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Sequence
from typing import Any

from smallr.data.errors import DataError, nearest, shorten

LABELS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}


@dataclasses.dataclass(frozen=True)
class Cell:
    """Says where a value stands, for messages."""

    place: str
    column: str

    def error(self, problem: str) -> DataError:
        """Returns the error that names the place."""
        return DataError(f"{self.place}, column {self.column!r}: {problem}")


def as_text(value: Any) -> str | None:
    """Writes a number, a truth value or a date as text; None and whatever is no single value stay as they are.

    A whole number that a column of floats holds (4.0, where another row has none) is written as the number 4. NaN and
    infinities, which many tools write where there is no value, are None.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat(" ") if isinstance(value, datetime.datetime) else value.isoformat()
    return value


def plain_text(value: Any, cell: Cell) -> str:
    """Reads text, without white space around it; null is empty.

    Raises:
      DataError: a list or the like.
    """
    value = as_text(value)
    if value is not None and not isinstance(value, str):
        raise cell.error(f"expected text, found {kind_of(value)} {shorten(value)}; write it out")
    return (value or "").strip()


def number(value: Any, cell: Cell) -> float:
    """Reads a number, also from text as CSV files hold it; NaN where the row has none.

    Raises:
      DataError: it is none.
    """
    if _is_absent(value):
        return math.nan
    try:
        found = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError):
        found = None
    if found is None:
        raise cell.error(f"expected a number, found {kind_of(value)} {shorten(value)}")
    return found


def beta(value: Any, cell: Cell) -> float:
    """Reads a beta; NaN where the row has none.

    Raises:
      DataError: it is negative or not finite.
    """
    found = number(value, cell)
    if not _is_absent(value) and not (math.isfinite(found) and found >= 0):
        raise cell.error(f"beta must be a finite number >= 0, found {value}; correct or remove the row")
    return found


def label(value: Any, cell: Cell) -> float:
    """Reads 1 for true and 0 for false, however they are written: true, "True", 1, 1.0, "1"; NaN where the row has none.

    Raises:
      DataError: it is neither.
    """
    if _is_absent(value) or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    found = LABELS.get(str(value).strip().lower())
    if found is None:
        raise cell.error(f"expected true or false, found {kind_of(value)} {shorten(value)}")
    return found


def choice_index(value: Any, choices: Sequence[str], cell: Cell) -> int:
    """Reads one of some words as its index; -1 where the row has none.

    Raises:
      DataError: another word.
    """
    if _is_absent(value):
        return -1
    if value not in choices:
        name = cell.column
        raise cell.error(f"{name} {shorten(value)} must be one of: {', '.join(choices)}{nearest(value, choices)}")
    return choices.index(value)


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def kind_of(value: Any) -> str:
    """Returns what a value is, for messages."""
    return "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
