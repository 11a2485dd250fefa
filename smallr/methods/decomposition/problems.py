"""Reads the problems that are decomposed: a question and a gold answer that is a number."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Iterator

from ml_collections import ConfigDict

from smallr.agents.agent import encodable
from smallr.data.builtin.dataset import normalise
from smallr.data.errors import DataError, nearest, shorten
from smallr.data.files import PROBLEM, separator_hint
from smallr.data.sources import load_part
from smallr.data.values import as_text
from smallr.methods.decomposition.answers import gold_number
from smallr.methods.decomposition.sequence import Markers

_SEPARATOR = re.compile(r",(?![^\[]*\])")


@dataclasses.dataclass(frozen=True)
class ProblemRow:
    """Holds a problem; `answer` is the gold number as it was written, without the solution before "####"."""

    split: str
    row: int
    question: str
    answer: str

    @property
    def id(self) -> str:
        """Returns the digest of what the row says, so that other rows of the same file do not matter."""
        content = json.dumps([self.split, self.question, self.answer])
        return hashlib.sha256(content.encode()).hexdigest()[:20]


@dataclasses.dataclass(frozen=True)
class Problems:
    """Holds the problems of all splits, and the rows that are left out: why, and where."""

    splits: tuple[str, ...]
    rows: list[ProblemRow]
    left_out: dict[str, list[str]]


def load_problems(config: ConfigDict, markers: Markers) -> Problems:
    """Reads `config.data`; a row that cannot be used is left out, counted and logged.

    Raises:
      DataError: no such source, split or column; no row that can be used.
    """
    parts = [part.strip() for part in _SEPARATOR.split(config.data.splits) if part.strip()]
    names = tuple(part.partition("[")[0] for part in parts)
    if not parts or len(set(names)) < len(names):
        raise DataError(f"config.data.splits = {config.data.splits!r}: name each split once, e.g. train[:200],test")
    found, seen = Problems(names, [], {}), set()
    for name, part in zip(names, parts, strict=True):
        for row, place, problem in _rows(config, name, part):
            reason = problem or _reason(row, markers, seen)
            if reason:
                found.left_out.setdefault(reason, []).append(place)
                logging.warning("%s: left out, %s", place, reason)
            else:
                seen.add(normalise(row.question))
                found.rows.append(row)
    if not found.rows:
        reason, places = next(iter(found.left_out.items()))
        raise DataError(f"{places[0]}: {reason} (no row of {config.data.source} can be used)")
    return found


def _reason(row: ProblemRow, markers: Markers, seen: set[str]) -> str:
    """Returns why a problem cannot be used; empty if it can."""
    if not row.question:
        return "no question"
    if row.question != encodable(row.question):
        return "the question holds half a character"
    if marker := markers.found_in(row.question):
        return f"the question holds the marker {marker!r}; choose other markers (config.markers)"
    if gold_number(row.answer) is None:
        return "the answer is no number"
    return "the question of an earlier row" if normalise(row.question) in seen else ""


def _rows(config: ConfigDict, name: str, part: str) -> Iterator[tuple[ProblemRow, str, str]]:
    """Yields each row with its place and why it cannot be read, if so."""
    source, columns = config.data.source, config.data.columns
    loaded, _, numbers = load_part(source, part)
    for ours, theirs in columns.items():
        if theirs not in loaded.column_names:
            present = loaded.column_names
            raise DataError(
                f"{source}: no column {theirs!r} to use as {ours!r}; present {', '.join(present)}"
                + (
                    separator_hint(present)
                    or f"{nearest(theirs, present)} Map a column with --config.data.columns.{ours}=NAME."
                )
            )
    for index, row in enumerate(loaded):
        place, texts = f"{source}, row {numbers[index]}", {}
        for ours, theirs in columns.items():
            texts[ours] = as_text(row[theirs])
            if not isinstance(texts[ours], str | None):
                raise DataError(f"{place}, column {theirs!r}: expected text or a number, found {shorten(row[theirs])}")
        answer = (texts["answer"] or "").rpartition("####")[2].strip()
        yield ProblemRow(name, index, (texts["question"] or "").strip(), answer), place, row.get(PROBLEM) or ""
