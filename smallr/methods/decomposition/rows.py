"""Reads and writes decompositions in the published layout (GSM8K-AI-SubQ), and checks them.

    {"question": "…", "answers": ["sub-question", …],
     "rewards": {"answer_correctness": 1.0, "usefulness": [1.0, 0.67, …]}, "true_answer": 18.0}

The column `answers` has the sub-questions. A row without usefulness has an empty list there, as the published test half.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from smallr.data.errors import DataError, shorten
from smallr.data.files import PROBLEM
from smallr.data.reviewed import COLUMN, REJECTED, status_of
from smallr.data.sources import load_part
from smallr.methods.decomposition.sequence import PUBLISHED, Markers

_NUMBER, _TEXT = Value("float64"), Value("string")
FEATURES = Features(
    {
        "question": _TEXT,
        "answers": List(_TEXT),
        "rewards": {"answer_correctness": _NUMBER, "usefulness": List(_NUMBER)},
        "true_answer": _NUMBER,
    }
)
COLUMNS = tuple(FEATURES)


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """Holds the sub-questions of a problem and what they are worth.

    Attributes:
      question: the problem.
      sub_questions: at least one.
      correctness: 1 if a solver that answered them came to the gold answer, else 0.
      usefulness: share of verdicts, for each sub-question, that call it useful; empty if nobody was asked.
      true_answer: gold.
    """

    question: str
    sub_questions: tuple[str, ...]
    correctness: float
    usefulness: tuple[float, ...]
    true_answer: float

    @property
    def mean_usefulness(self) -> float:
        """Returns the mean over the sub-questions; NaN if nobody was asked."""
        return sum(self.usefulness) / len(self.usefulness) if self.usefulness else math.nan

    def published(self) -> dict[str, Any]:
        """Returns the row in the published layout."""
        return {
            "question": self.question,
            "answers": list(self.sub_questions),
            "rewards": {"answer_correctness": self.correctness, "usefulness": list(self.usefulness)},
            "true_answer": self.true_answer,
        }


class BadRowError(Exception):
    """Says what is wrong with one row: (column, what is wrong and what to do)."""

    def __str__(self) -> str:
        column, problem = self.args
        return f"column {column!r}: {problem}"


@dataclasses.dataclass(frozen=True)
class LoadedRows:
    """Holds the rows of a source, and what is wrong with each row that is left out."""

    rows: list[Decomposition]
    left_out: list[str]


def load_decompositions(source: str, split: str = "train", markers: Markers = PUBLISHED) -> LoadedRows:
    """Reads decompositions from anything that training reads rows from; bad rows are left out, and logged.

    Raises:
      DataError: no such source, split or column, or no good row.
    """
    loaded, _, numbers = load_part(source, split)
    if missing := [name for name in COLUMNS if name not in loaded.column_names]:
        raise DataError(
            f"{source}: no column {missing[0]!r}; decompositions have the columns {', '.join(COLUMNS)} "
            f"(present {', '.join(loaded.column_names)})"
        )
    found, left_out = [], []
    for row, number in zip(_exact_rows(loaded), numbers, strict=True):
        try:
            found.append(parse_row(row, markers))
        except BadRowError as error:
            left_out.append(f"{source}, row {number}, {error}")
            logging.warning("left out: %s", left_out[-1])
    if not found:
        raise DataError(f"{left_out[0]} (none of the {len(left_out)} rows can be used)")
    return LoadedRows(found, left_out)


def _exact_rows(loaded: Dataset) -> Iterator[dict[str, Any]]:
    """Yields rows with their numbers as they were written; `datasets` parses nested JSON by a parser that rounds some."""
    table = loaded.with_format("arrow")[:]
    columns = {}
    for name in (*COLUMNS, *({PROBLEM, COLUMN} & set(loaded.column_names))):
        column = table[name]
        values = column.to_pylist()
        is_json = column.type == pa.json_()
        columns[name] = [json.loads(value) if is_json and value is not None else value for value in values]
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def parse_row(row: Mapping[str, Any], markers: Markers = PUBLISHED) -> Decomposition:
    """Checks a row of the published layout.

    Raises:
      BadRowError: it cannot be used.
    """
    if row.get(PROBLEM):
        raise BadRowError("question", row[PROBLEM])
    if status_of(row.get(COLUMN)) == REJECTED:
        raise BadRowError(COLUMN, "a person has rejected it")
    question = row["question"]
    if not isinstance(question, str) or not question.strip():
        raise BadRowError("question", f"expected the text of a problem, found {shorten(question)}")
    if marker := markers.found_in(question):
        raise BadRowError("question", f"it holds the marker {marker!r}; choose other markers (config.markers)")
    sub_questions = _sub_questions(row["answers"], markers)
    rewards = row["rewards"]
    if not isinstance(rewards, Mapping) or not {"answer_correctness", "usefulness"} <= rewards.keys():
        raise BadRowError("rewards", f"expected answer_correctness and usefulness, found {shorten(rewards)}")
    correctness = rewards["answer_correctness"]
    if not _is_number(correctness) or correctness not in (0, 1):
        raise BadRowError("rewards.answer_correctness", f"expected 0 or 1, found {shorten(correctness)}")
    if not _is_number(row["true_answer"]):
        raise BadRowError("true_answer", f"expected a finite number, found {shorten(row['true_answer'])}")
    usefulness = _usefulness(rewards["usefulness"], len(sub_questions))
    return Decomposition(question, sub_questions, float(correctness), usefulness, float(row["true_answer"]))


def _sub_questions(value: Any, markers: Markers) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadRowError("answers", f"expected a list of sub-questions, found {shorten(value)}")
    if not value:
        raise BadRowError("answers", "the list of sub-questions is empty; a row needs at least one")
    for number, text in enumerate(value):
        if not isinstance(text, str) or not text.strip():
            raise BadRowError(
                "answers", f"sub-question {number} must be a text that is not empty, found {shorten(text)}"
            )
        if marker := markers.found_in(text):
            raise BadRowError(
                "answers",
                f"sub-question {number} holds the marker {marker!r}: take it out, or choose other markers (config.markers)",
            )
    return tuple(text.strip() for text in value)


def _usefulness(value: Any, count: int) -> tuple[float, ...]:
    column = "rewards.usefulness"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadRowError(column, f"expected a list of numbers, found {shorten(value)}")
    if value and len(value) != count:
        raise BadRowError(
            column,
            f"{len(value)} values for {count} sub-questions; give one for each, or none if nobody was asked",
        )
    for number, each in enumerate(value):
        if not _is_number(each) or not 0 <= each <= 1:
            raise BadRowError(
                column, f"value {number} is {shorten(each)}; it must be from 0 to 1, the share of verdicts that say yes"
            )
    return tuple(map(float, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def by_problem(rows: Iterable[Decomposition]) -> dict[str, list[Decomposition]]:
    """Groups decompositions by their problem, in the order of the first ones."""
    groups: dict[str, list[Decomposition]] = {}
    for row in rows:
        groups.setdefault(row.question, []).append(row)
    return groups
