"""Reads questions of evaluation sets, which must not be trained on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from smallr.data.errors import DataError
from smallr.data.sources import load_rows

# Columns that hold a question, the first that there is; SVAMP and its like have it in two.
_COLUMNS = (("question",), ("problem",), ("Body", "Question"), ("Question",), ("prompt",), ("inputs",))

_PUNCTUATION = re.compile(r"[\s.,;:!?\"'`“”‘’«»$*_]+")  # signs of operation stay: 2+3 is not 2-3


def normalise(question: str) -> str:
    """Returns a question without case, spacing and the signs of sentences; equal questions are one question."""
    return _PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", question).casefold()).strip()


class Holdout:
    """Holds normalised questions."""

    def __init__(self, questions: Iterable[str]):
        self._known = {text for question in questions if (text := normalise(question))}

    def __contains__(self, normalised: str) -> bool:
        """Returns whether a question that went through `normalise` is one of them."""
        return normalised in self._known

    def __len__(self) -> int:
        return len(self._known)

    @classmethod
    def load(cls, specs: str | Sequence[str]) -> Holdout:
        """Reads the questions of data sets.

        Args:
          specs: each SOURCE or SOURCE@SPLIT, with SOURCE as `smallr.data.sources` takes it; SPLIT is `test` by default
            if there is one, else `train`. One string holds several, separated by commas.

        Raises:
          DataError: no such source or split, or none of its columns holds a question.
        """
        specs = specs.split(",") if isinstance(specs, str) else specs
        return cls(question for spec in specs if spec.strip() for question in _questions(spec.strip()))


def _questions(spec: str) -> list[str]:
    source, _, split = spec.partition("@")
    rows = _load(source, split)
    for names in _COLUMNS:
        if set(names) <= set(rows.column_names):
            return [_joined(row, names) for row in rows.select_columns(list(names))]
    raise DataError(
        f"holdout {source}: none of its columns {', '.join(rows.column_names)} holds a question "
        f"({', '.join(' and '.join(names) for names in _COLUMNS)})"
    )


def _load(source: str, split: str) -> Any:
    if split:
        return load_rows(source, split)
    try:
        return load_rows(source, "test")
    except DataError as error:
        if "no split 'test'" not in str(error):
            raise
        return load_rows(source, "train")


def _joined(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return " ".join(value if isinstance(value := row[name], str) else "" for name in names)
