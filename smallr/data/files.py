"""Reads files of rows and of lines: the one reader of training, generation, evaluation, scoring and annotation.

A file is UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one; it may be packed by gzip. A line ends
with a line feed, a carriage return, or the two together, and with nothing else: U+2028, form feeds and the like belong
to the text. What is wrong is said with the file and the line, before any of it is used.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from smallr.data.errors import DataError, shorten

FORMATS = {"json": "json", "jsonl": "json", "ndjson": "json", "parquet": "parquet", "csv": "csv"}
PROBLEM = "_problem"  # column of a data set that says why a row cannot be used; there only if one cannot
DEEPEST = 100  # levels of lists and objects in a row
LONGEST_LINE = 1 << 28  # bytes, or characters of UTF-16
# A packed file may hold so much, or so many times its own size; text is packed to a fifth or a tenth.
UNPACKED, RATIO = 1 << 28, 64

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"} | {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_GZIP = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class Record:
    """Represents a row of a file.

    Attributes:
      place: the file and where in it, for messages.
      value: the row; None if it cannot be used.
      problem: why it cannot be used; empty if it can.
    """

    place: str
    value: Any
    problem: str = ""


def format_of(path: str) -> str | None:
    """Returns the format that the name of a file tells (json, parquet, csv), None for any other."""
    suffixes = [suffix[1:].lower() for suffix in Path(path).suffixes]
    if suffixes[-1:] == ["gz"]:
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def read_lines(name: str) -> Iterator[tuple[int, str]]:
    """Reads the lines of a file of text, or of standard input for `-`, as (number from 1, text without its end).

    Raises:
      DataError: the file cannot be read, is not text, or unpacks to more than it may.
    """
    for number, line in _raw_lines(name):
        yield number, line.removesuffix("\n").removesuffix("\r")


def read_records(name: str, *, strict: bool = True, surrogates: bool = False) -> Iterator[Record]:
    """Reads the rows of a file in JSON, JSON lines or CSV.

    Args:
      name: the file.
      strict: whether a row that is not JSON or not an object is an error; else it is given with its `problem`.
      surrogates: whether a row with half of a surrogate pair, which no encoding can write, is given as it is; else it is
        given with its `problem`.

    Raises:
      DataError: the file cannot be read; with `strict` also a row that cannot.
    """
    is_csv = format_of(name) == "csv"
    records = _csv_records(name) if is_csv else _json_records(name, _raw_lines(name), surrogates)
    return _strict(records) if strict else records


def json_records(name: str, lines: Iterable[tuple[int, str]], *, surrogates: bool = False) -> Iterator[Record]:
    """Reads rows of JSON from numbered lines, as `read_records` does, strictly."""
    return _strict(_json_records(name, iter(lines), surrogates))


def _strict(records: Iterator[Record]) -> Iterator[Record]:
    for record in records:
        if record.problem and not record.problem.startswith(_NO_TEXT):
            raise DataError(f"{record.place}: {record.problem}")
        yield record


def _raw_lines(name: str) -> Iterator[tuple[int, str]]:
    with _open(name) as stream:
        try:
            head = stream.peek(4)[:4]
            mark = next((mark for mark in sorted(_MARKS, key=len, reverse=True) if head.startswith(mark)), b"")
            if mark and _MARKS[mark] != "utf-8-sig":
                yield from _decoded(name, io.TextIOWrapper(stream, encoding=_MARKS[mark], newline=""))
                return
            stream.read(len(mark))
            yield from _utf8(name, stream)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{name}: cannot be read: {error}") from error


def _utf8(name: str, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        _check_line(name, number + 1, len(line))
        for part in line.splitlines(keepends=True):  # of bytes: at line feeds and carriage returns alone
            number += 1
            try:
                yield number, part.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{name}, line {number}: not UTF-8 (byte 0x{part[error.start]:02x} at {error.start + 1}); write the "
                    "file in UTF-8, e.g. iconv -f latin1 -t utf-8, if latin1 is what it is in"
                ) from error


def _decoded(name: str, stream: io.TextIOWrapper) -> Iterator[tuple[int, str]]:
    number = 0
    while True:
        try:
            line = stream.readline(LONGEST_LINE + 1)
        except UnicodeDecodeError as error:
            raise DataError(f"{name}, behind line {number}: not {stream.encoding}: {error.reason}") from error
        if not line:
            return
        number += 1
        _check_line(name, number, len(line))
        yield number, line


def _check_line(name: str, number: int, length: int) -> None:
    if length > LONGEST_LINE:
        raise DataError(f"{name}, line {number}: longer than {LONGEST_LINE >> 20} MiB, the limit of a line")


def _open(name: str) -> io.BufferedReader:
    """Opens a file or standard input, unpacked."""
    try:
        if name == "-":
            return io.BufferedReader(sys.stdin.buffer)
        path = Path(name)
        file = path.open("rb")
        if file.peek(2)[:2] != _GZIP and path.suffix != ".gz":
            return file
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error
    return io.BufferedReader(_Unpacked(name, file, path.stat().st_size))


class _Unpacked(io.RawIOBase):
    """Reads a gzip file, and raises once more comes out of it than any text would."""

    def __init__(self, name: str, file: BinaryIO, size: int) -> None:
        self._name, self._packed, self._file = name, file, gzip.GzipFile(fileobj=file)
        self._limit, self._count = max(UNPACKED, RATIO * size), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._count += count
        if self._count > self._limit:
            raise DataError(
                f"{self._name}: unpacks to more than {self._limit >> 20} MiB, the limit of a packed file of its size; "
                "unpack it, if it is what you mean to read"
            )
        return count

    def close(self) -> None:
        self._file.close()
        self._packed.close()
        super().close()


# --- JSON ---

_NO_TEXT = "half of a surrogate pair"


class _Twice(ValueError):
    """Says that an object has a key twice."""


def _json_records(name: str, lines: Iterator[tuple[int, str]], surrogates: bool) -> Iterator[Record]:
    first = True
    for number, line in lines:
        if not (text := line.strip(" \t\r\n")):
            continue
        if first and text.startswith("["):
            yield from _json_list(name, line, number, lines, surrogates)
            return
        first = False
        value, problem = _parsed(
            text, lambda error: f"not valid JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
        )
        yield _checked(f"{name}, line {number}", value, problem, _signs(text), surrogates)


def _json_list(
    name: str, first: str, number: int, lines: Iterator[tuple[int, str]], surrogates: bool
) -> Iterator[Record]:
    """Reads a file that is one list."""
    text = first + "".join(line for _, line in lines)
    value, problem = _parsed(text, lambda error: f"line {number - 1 + error.lineno}: not valid JSON: {error.msg}")
    if problem:
        raise DataError(f"{name}{', ' if problem.startswith('line') else ': '}{problem}")
    signs = _signs(text)  # of all rows: looked for once, not once a row
    for index, row in enumerate(value):
        yield _checked(f"{name}, row {index}", row, "", signs, surrogates)


def parse_json(text: str) -> Any:
    """Parses JSON that stands in a column of text.

    Raises:
      ValueError: it is no JSON, or is nested too deep.
    """
    value, problem = _parsed(text, lambda error: f"not valid JSON: {error.msg} at character {error.pos + 1}")
    if problem or (_signs(text).deep and _depth(value) > DEEPEST):
        raise ValueError(problem or f"nested deeper than {DEEPEST} levels")
    return value


def _parsed(text: str, describe: Callable[[json.JSONDecodeError], str]) -> tuple[Any, str]:
    try:
        return json.loads(text, object_pairs_hook=_object), ""
    except json.JSONDecodeError as error:
        return None, describe(error)
    except RecursionError:
        return None, f"nested deeper than {DEEPEST} levels"
    except _Twice as error:
        return None, str(error)
    except ValueError:  # more digits than Python makes a number of
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer), ""


def _integer(digits: str) -> int | str:
    """Returns a whole number, as text where it has too many digits: a column that holds one becomes text."""
    return int(digits) if len(digits) <= sys.get_int_max_str_digits() else digits


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return value


class _Signs(NamedTuple):
    """Tells whether a text can hold what is looked for value by value."""

    deep: bool
    halves: bool


def _signs(text: str) -> _Signs:
    return _Signs(text.count("[") + text.count("{") > DEEPEST, "\\ud" in text or "\\uD" in text)


def _checked(place: str, value: Any, problem: str, signs: _Signs, surrogates: bool) -> Record:
    """Returns the row if it is an object, not too deep, and its texts can be written; else a problem."""
    if not problem and not isinstance(value, dict):
        problem = f"a row must be an object {{...}}, found {shorten(value, 60)}"
    if not problem and signs.deep and _depth(value) > DEEPEST:
        problem = f"nested deeper than {DEEPEST} levels"
    if not (problem or surrogates) and signs.halves and (found := lone_surrogate(value)):
        problem = f"{_NO_TEXT} ({found}) in {shorten(next(k for k, v in value.items() if lone_surrogate([k, v])))}"
    return Record(place, None if problem else value, problem)


def _depth(value: Any) -> int:
    """Returns levels of lists and objects; counted without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list) and item]:
        depth += 1
        if depth > DEEPEST:
            break
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def lone_surrogate(value: Any) -> str:
    """Returns the first half of a surrogate pair in the texts of a value as `U+D83D`; empty if there is none."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            if not item.isascii():
                try:
                    item.encode()
                except UnicodeEncodeError as error:
                    return f"U+{ord(item[error.start]):04X}"
        elif isinstance(item, Mapping):
            todo += [*item.values(), *item.keys()]
        elif isinstance(item, list | tuple):
            todo += item
    return ""


# --- CSV ---

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def separator_hint(columns: Sequence[str]) -> str:
    """Returns what to do where the only column looks like several, separated by something else than commas."""
    columns = [column for column in columns if column != PROBLEM]
    if len(columns) != 1:
        return ""
    found = next((name for separator, name in _SEPARATORS.items() if separator in columns[0]), "")
    return f"; the columns look separated by {found}: separate them by commas" if found else ""


def _csv_records(name: str) -> Iterator[Record]:
    """Reads rows of text: "007" stays as it is, and so does the answer "None"."""
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader((line for _, line in _raw_lines(name)), strict=True)
    try:
        header = next(reader, [])
        names = [name or f"Unnamed: {index}" for index, name in enumerate(header)]
        if twice := [name for name in names if names.count(name) > 1]:
            raise DataError(f"{name}, line 1: the column {twice[0]!r} stands twice; rename one of them")
        for row in reader:
            place = f"{name}, line {reader.line_num}"
            if not row:
                continue
            if len(row) != len(names):
                hint = separator_hint(names) or " (a comma without quotes?)"
                problem = f"{len(row)} fields, but the first line names {len(names)} columns{hint}"
                yield Record(place, None, problem)
            else:
                yield Record(place, dict(zip(names, row, strict=True)))
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: not valid CSV: {error}") from error
