"""Makes one `datasets.Dataset` of the rows of files, whatever the rows hold.

Text stays text (a date too), numbers stay numbers, and a column of both becomes text. Lists and objects are kept as they
are (`datasets.Json`): no nulls are put where another row has a field. A row that cannot be used keeps its number: it has
nulls, and its problem in the column `PROBLEM`.

Rows beyond the first 64 MiB go to a file in the cache, and are mapped into memory from there; the file has no name any more,
so that it is gone with the process.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from smallr.core.cache import cache_dir
from smallr.data.errors import DataError
from smallr.data.files import PROBLEM, Record, format_of, read_records
from smallr.data.values import as_text

_CHUNK = 10_000
_SPILL = 1 << 26  # bytes of rows that are held in memory before they go to a file
_SCALARS = {bool: "bool", int: "int", float: "float", str: "text"}
_TYPES = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string(), "json": pa.json_()}


def read_table(paths: Sequence[str], name: str) -> datasets.Dataset:
    """Reads files of one format into a data set; rows come in the order of the files.

    Args:
      paths: the files.
      name: what they are together, for messages.

    Raises:
      DataError: a file cannot be read, columns of two files do not fit, or there is no row at all.
    """
    formats = {format_of(path) for path in paths}
    if len(formats) > 1 or None in formats:
        raise DataError(
            f"{name}: expected files of one format of json, jsonl, ndjson, parquet, csv (also .gz), found "
            f"{', '.join(Path(path).name for path in paths[:5])}"
        )
    rows = _parquet(paths, name) if formats == {"parquet"} else _text_rows(paths)
    if not len(rows):
        raise DataError(f"{name}: holds no rows")
    return rows


def table_of(records: Iterable[Record]) -> datasets.Dataset:
    """Makes a data set of records."""
    columns = _Columns()
    for record in records:
        columns.add(record)
    return columns.data_set()


def _text_rows(paths: Sequence[str]) -> datasets.Dataset:
    columns, names = _Columns(), {}
    for path in paths:
        columns.begin()
        for record in read_records(path):
            columns.add(record)
        names[path] = columns.seen
        if not columns.count:
            names.pop(path)
            if len(paths) > 1:
                logging.warning("%s holds no rows", path)
    _name_differences(names)
    return columns.data_set()


def _name_differences(names: Mapping[str, Iterable[str]]) -> None:
    """Warns of columns that not all files have: rows of the others have nothing there."""
    for column in dict.fromkeys(column for columns in names.values() for column in columns):
        lacking = [path for path, columns in names.items() if column not in columns]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            logging.warning("%s%s: no column %r, which other files of the set have", lacking[0], more, column)


def _parquet(paths: Sequence[str], name: str) -> datasets.Dataset:
    try:
        schemas = {}
        for path in paths:
            schemas[path] = pq.read_schema(path)
            names = schemas[path].names
            if twice := [column for column in names if names.count(column) > 1]:
                raise DataError(f"{path}: the column {twice[0]!r} stands twice; rename one of them")
        first, *others = schemas.values()
        if all(first.equals(other) for other in others):
            files = [os.path.abspath(path) for path in paths]
            return datasets.load_dataset("parquet", data_files=files, split="train")
        _name_differences({path: schema.names for path, schema in schemas.items()})
        tables = [pq.read_table(path).replace_schema_metadata(None) for path in paths]
        return datasets.Dataset(pa.concat_tables(tables, promote_options="permissive"))
    except DataError:
        raise
    except Exception as error:  # readers raise what they like; the cause is what the user needs
        path = next((path for path in paths if path not in schemas), name)
        raise DataError(f"{path}: cannot be read as parquet: {error.__cause__ or error}") from error


class _Columns:
    """Collects rows as columns of Arrow arrays, a chunk at a time."""

    def __init__(self) -> None:
        self._chunks: dict[str, list[tuple[str, pa.Array | int]]] = {}
        self._rows: list[Record] = []
        self._done = 0
        self._held: list[tuple[str, int]] = []  # column and number of the chunks that are in memory
        self._bytes = 0
        self.begin()

    def begin(self) -> None:
        """Begins another file."""
        self.count, self.seen = 0, {}

    def add(self, record: Record) -> None:
        self._rows.append(record)
        self.count += 1
        self.seen.update(dict.fromkeys(record.value or ()))
        if len(self._rows) == _CHUNK:
            self._flush()

    def data_set(self) -> datasets.Dataset:
        self._flush()
        arrays, features = {}, {}
        for name, chunks in self._chunks.items():
            kind = _common_kind([kind for kind, _ in chunks])
            typed = [_as_kind(kind, chunk) for chunk in chunks]
            if kind == "list":
                typed, kind = _same_lists(typed, chunks)
            arrays[name] = pa.chunked_array(typed)
            features[name] = datasets.Json() if kind == "json" else None
        table = pa.table(arrays)
        known = datasets.Features.from_arrow_schema(
            pa.schema([field for field in table.schema if features[field.name] is None])
        )
        every = datasets.Features({name: features[name] or known[name] for name in table.column_names})
        # A fingerprint of one's own: that of datasets would copy all rows.
        return datasets.Dataset(
            table.replace_schema_metadata(every.arrow_schema.metadata), fingerprint=uuid.uuid4().hex
        )

    def _flush(self) -> None:
        rows = [row.value or {} for row in self._rows]
        names = dict.fromkeys([*self._chunks, *(name for row in rows for name in row)])
        values = {name: [row.get(name) for row in rows] for name in names}
        if PROBLEM in self._chunks or any(row.problem for row in self._rows):
            values[PROBLEM] = [f"{row.problem} ({row.place})" if row.problem else None for row in self._rows]
        for name, column in values.items():
            # Rows before the first that has this column.
            before = [("null", self._done)] if name not in self._chunks and self._done else []
            chunks = self._chunks.setdefault(name, before)
            chunks.append(_array(column))
            if isinstance(array := chunks[-1][1], pa.Array):
                self._held.append((name, len(chunks) - 1))
                self._bytes += array.nbytes
        self._done += len(rows)
        self._rows.clear()
        if self._bytes >= _SPILL:
            self._spill()

    def _spill(self) -> None:
        """Moves the chunks that are in memory to a file that is mapped."""
        held, self._held, self._bytes = self._held, [], 0
        arrays = [self._chunks[name][number][1] for name, number in held]
        try:
            mapped = _on_disk(arrays)
        except OSError as error:
            logging.warning("rows stay in memory, since they cannot be written to the cache: %s", error)
            return
        for (name, number), array in zip(held, mapped, strict=True):
            self._chunks[name][number] = (self._chunks[name][number][0], array)


def _on_disk(arrays: Sequence[pa.Array]) -> list[pa.Array]:
    """Returns arrays as they are mapped from a file, which may have any lengths."""
    descriptor, path = tempfile.mkstemp(prefix="rows-", dir=cache_dir("rows"))
    os.close(descriptor)
    try:
        sizes = []
        with pa.OSFile(path, "wb") as file:
            for array in arrays:
                batch = pa.record_batch([array], ["column"])
                with pa.ipc.new_stream(file, batch.schema) as stream:
                    stream.write_batch(batch)
                sizes.append(file.tell())
        with pa.memory_map(path) as file:  # what is mapped stays, though the file is closed and has lost its name
            whole = file.read_buffer()
            return [
                pa.ipc.open_stream(whole.slice(start, stop - start)).read_next_batch().column(0)
                for start, stop in itertools.pairwise([0, *sizes])
            ]
    finally:
        os.unlink(path)


def _array(values: list[Any]) -> tuple[str, pa.Array | int]:
    """Returns a chunk of a column: its kind, and the array, or how many nulls it is."""
    types = {type(value) for value in values if value is not None}
    if not types:
        return "null", len(values)
    kinds = {_SCALARS.get(kind, "json") for kind in types}
    kind = _common_kind(list(kinds))
    if kind == "json":
        if types == {list} and not any(isinstance(item, dict | list) for value in values for item in value or ()):
            try:
                return "list", pa.array(values)
            except (pa.ArrowException, OverflowError):
                pass  # lists of mixed types
        return "json", _json_array(values)
    if kind == "text":
        values = [as_text(value) for value in values]
    try:
        return kind, pa.array(values, _TYPES[kind])
    except (pa.ArrowException, OverflowError):  # a whole number beyond 64 bits
        return "text", pa.array([as_text(value) for value in values], pa.string())


def _common_kind(kinds: Sequence[str]) -> str:
    found = set(kinds) - {"null"}
    if len(found) <= 1:
        return found.pop() if found else "text"
    if found == {"int", "float"}:
        return "float"
    return "json" if found & {"json", "list"} else "text"


def _as_kind(kind: str, chunk: tuple[str, pa.Array | int]) -> pa.Array:
    own, array = chunk
    if own == "null":
        return pa.nulls(array, _TYPES.get(kind, pa.null()))
    if own == kind:
        return array
    if kind == "json":
        values = array.to_pylist() if own != "json" else array
        return _json_array(values)
    if kind == "float":
        return array.cast(pa.float64())
    return pa.array([as_text(value) for value in array.to_pylist()], pa.string())


def _same_lists(arrays: list[pa.Array], chunks: list[tuple[str, pa.Array | int]]) -> tuple[list[pa.Array], str]:
    """Yields chunks of lists of one type; JSON if their types differ."""
    types = {array.type for array in arrays if not pa.types.is_null(array.type)}
    if len(types) == 1:
        (one,) = types
        return [array if array.type == one else pa.nulls(len(array), one) for array in arrays], "list"
    return [_as_kind("json", chunk) for chunk in chunks], "json"


def _json_array(values: Iterable[Any]) -> pa.Array:
    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pa.array(texts, pa.json_())
