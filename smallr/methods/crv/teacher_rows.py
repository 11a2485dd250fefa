"""Reads and sorts the teacher's rows: what is worked on, and what is not and why."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from ml_collections import ConfigDict

from smallr.data.errors import DataError, nearest, shorten
from smallr.data.files import PROBLEM, separator_hint
from smallr.data.sources import load_part
from smallr.data.values import as_text
from smallr.methods.crv.holdout import Holdout, normalise
from smallr.methods.crv.rows import TeacherRow

_SEPARATOR = re.compile(r",(?![^\[]*\])")


@dataclasses.dataclass
class Teacher:
    """Holds the rows of all splits.

    Attributes:
      splits: their names, without the parts that were taken.
      rows: to be worked on.
      read: rows of the source.
      duplicates: rows whose question stood in an earlier row; left out.
      no_question: rows without one; left out.
      unreadable: rows that cannot be written in any encoding; left out.
      contaminated: rows whose question is in the evaluation set; left out. (split, row, question) each.
    """

    splits: tuple[str, ...]
    rows: list[TeacherRow]
    read: int = 0
    duplicates: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    no_question: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    unreadable: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    contaminated: list[tuple[str, int, str]] = dataclasses.field(default_factory=list)

    @property
    def without_gold(self) -> int:
        """Returns rows to be worked on that have no gold answer."""
        return sum(not row.answer for row in self.rows)


def load_teacher(config: ConfigDict) -> Teacher:
    """Reads `config.data`.

    Raises:
      DataError: no such source, split or column; a value of a wrong type; no row that can be worked on.
    """
    holdout = Holdout.load(config.data.holdout)
    parts = [part.strip() for part in _SEPARATOR.split(config.data.splits) if part.strip()]
    names = tuple(part.partition("[")[0] for part in parts)
    if not parts or len(set(names)) < len(names):
        raise DataError(f"config.data.splits = {config.data.splits!r}: name each split once, e.g. train[:200],test")
    teacher, seen = Teacher(names, []), set()
    for name, part in zip(names, parts, strict=True):
        for row in _rows(config, name, part, teacher):
            teacher.read += 1
            key = normalise(row.question)
            if not key:
                teacher.no_question.append((name, row.row))
            elif key in holdout:
                teacher.contaminated.append((name, row.row, row.question))
            elif key in seen:
                teacher.duplicates.append((name, row.row))
            else:
                seen.add(key)
                teacher.rows.append(row)
    if not teacher.rows:
        raise DataError(
            f"{config.data.source}: nothing to do in {teacher.read} rows: {len(teacher.no_question)} without a question, "
            f"{len(teacher.unreadable)} unreadable, "
            f"{len(teacher.contaminated)} with a question of {config.data.holdout or 'the holdout'}"
        )
    return teacher


def _rows(config: ConfigDict, name: str, part: str, teacher: Teacher) -> list[TeacherRow]:
    """Reads the rows of a split; those that cannot be used are counted."""
    source = config.data.source
    loaded, _, numbers = load_part(source, part)
    columns = _columns(config.data.columns, loaded, source)
    found = []
    for number, row in enumerate(loaded):
        if row.get(PROBLEM):
            logging.warning("%s: left out, %s", source, row[PROBLEM])
            teacher.read += 1
            teacher.unreadable.append((name, number))
            continue

        def text(ours: str, row: Mapping[str, Any] = row, number: int = number) -> str:
            return (
                _text(row[columns[ours]], f"{source}, row {numbers[number]}, column {columns[ours]!r}")
                if columns[ours]
                else ""
            )

        found.append(
            TeacherRow(
                split=name,
                row=number,
                source=text("source") or source,
                question=text("question"),
                answer=text("answer"),
                rationale=text("rationale"),
            )
        )
    return found


def _columns(mapped: Mapping[str, str], rows: datasets.Dataset, source: str) -> dict[str, str]:
    """Maps our names to those of the source; empty for a column that need not be there and is not."""
    present: Sequence[str] = rows.column_names
    columns = {**mapped, "source": "source" if "source" in present else ""}
    if columns["answer"] == "answer" and "answer" not in present:
        columns["answer"] = ""  # the verifier alone decides
    for ours, theirs in columns.items():
        if theirs and theirs not in present:
            raise DataError(
                f"{source}: no column {theirs!r} to use as {ours!r}; present {', '.join(present)}"
                + (
                    separator_hint(present)
                    or f"{nearest(theirs, present)} Map a column with --config.data.columns.{ours}=NAME."
                )
            )
    return columns


def _text(value: Any, where: str) -> str:
    """Returns the text of a cell; a gold answer may be a number."""
    text = as_text(value)
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: expected text or a number, found {shorten(value)}")
    return (text or "").strip()
