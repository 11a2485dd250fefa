"""Reads and checks the rows of a benchmark: what can be asked, and what was left out and why."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError
from smallr.data.drops import DropReport
from smallr.data.errors import DataError
from smallr.data.files import PROBLEM, format_of, read_records
from smallr.data.sources import load_part
from smallr.evals.benchmarks.base import Benchmark, Choice, Question

# What an entry's reader raises on a row that it cannot read.
_MALFORMED = (
    KeyError, TypeError, ValueError, IndexError, AttributeError, SyntaxError, RecursionError, OverflowError, zlib.error,
)  # fmt: skip
# Columns that name a row, the first that it has.
ID_COLUMNS = ("id", "unique_id", "task_id", "question_id", "qid", "ID", "Record ID", "ind", "uid")


@dataclass(frozen=True)
class Item:
    """Represents a row that can be asked. `id` is the row's own, or its number; it is unique."""

    id: str
    row: dict[str, Any]
    task: Question | Choice


def load_items(benchmark: Benchmark, data: str = "", split: str = "", limit: int = 0) -> tuple[list[Item], DropReport]:
    """Reads a benchmark's rows.

    Args:
      benchmark: the entry.
      data: a source of rows as `smallr.data.sources` takes them; empty: the benchmark's own.
      split: of the source; empty: the benchmark's own on the hub, else `train`, which is all of a file.
      limit: the first so many rows; 0: all.

    Returns:
      The items in the order of the rows, and what was left out. A malformed row is left out and counted.

    Raises:
      UserError: no source, a missing file or split, no usable row.
    """
    if not data and not benchmark.source.hub:
        raise UserError(
            f"benchmark {benchmark.name} has no source on the hub ({benchmark.source.advice}): --config.data=FILE"
        )
    source = data or benchmark.source.hub
    report = DropReport(source, max_length=0)
    try:
        items = _items(
            benchmark, _rows(source, split or ("train" if data else benchmark.source.split), report), limit, report
        )
    except DataError as error:
        advice = (
            f" {benchmark.source.advice[:1].upper()}{benchmark.source.advice[1:]}." if benchmark.source.advice else ""
        )
        raise UserError(f"benchmark {benchmark.name}: {error}{advice} A local copy: --config.data=FILE") from error
    report.kept = len(items)
    if not items:
        raise UserError(f"benchmark {benchmark.name}: no usable row.\n{report}")
    return items, report


def _items(
    benchmark: Benchmark, rows: Iterator[tuple[dict[str, Any], str]], limit: int, report: DropReport
) -> list[Item]:
    """Makes items of rows; what is malformed is counted in the report."""
    items, seen = [], {}
    for number, (row, problem) in enumerate(rows):
        if limit and number >= limit:
            break
        report.total += 1
        if problem:
            report.drop(number, f"malformed: {problem[:100]}")
            continue
        try:
            task = benchmark.read(row)
        except _MALFORMED as error:
            report.drop(number, f"malformed: {type(error).__name__}: {str(error)[:100]}")
            continue
        name = next((str(row[column]) for column in ID_COLUMNS if row.get(column) not in (None, "")), str(number))
        seen[name] = seen.get(name, 0) + 1
        items.append(Item(name if seen[name] == 1 else f"{name}#{seen[name]}", row, task))
    return items


def _rows(source: str, split: str, report: DropReport) -> Iterator[tuple[dict[str, Any], str]]:
    """Reads (row, why it cannot be used) one by one.

    JSON files are read as they are: a broken line costs that line, and lists may be of any shape.
    """
    path = Path(source.removeprefix("files:")).expanduser()
    if format_of(path.name) == "json" and path.is_file() and split == "train":
        yield from ((record.value, record.problem) for record in read_records(str(path), strict=False))
        return
    rows, _, report.numbers = load_part(source, split)
    for row in rows:
        yield row, row.pop(PROBLEM, None) or ""
