"""Keeps a tokenised data set on disk: flat arrays, mapped into memory, found again by the content they were made from."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import itertools
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int8

from smallr.data.batch import ROLE_NONE, Completion, Example
from smallr.data.drops import DropReport

_ARRAYS = ("tokens", "roles", "starts", "prefix_lengths", "completion_lengths", "num_scored", "rows", "columns")
# Written for sets that have such columns.
_EXTRA = ("completion_columns", "token_columns")
_PART = 8192  # examples that are held in memory while they are written


class TokenSet(Sequence[Example]):
    """Holds the examples of one data set; E examples, up to S completions each, L tokens in all, M of them scored.

    Attributes:
      tokens, roles: int32 and int8 [L]; example after example, prefix then completions.
      starts: int64 [E + 1], where each example begins in `tokens`.
      prefix_lengths: int32 [E].
      completion_lengths: int32 [E, S]; 0 where an example has fewer completions.
      num_scored: int32 [E, S], scored tokens.
      rows: int64 [E], row of the source.
      columns: float32 [E] each; `beta` (NaN: none) and `gap` (-1: none, else an index of `rows.GAPS`) for pairs.
      completion_columns: float32 [E, S] each; 0 where an example has fewer completions.
      token_columns: float32 [M] each, in the order of the scored tokens.
      source: int16 [E], number of the source that an example is from; all 0 unless sets were merged.
      report: what was dropped, and `sources`, the same of each source.
      fingerprint: hash of the arrays. Equal fingerprints, equal training data.
    """

    tokens: Int[np.ndarray, "L"]
    roles: Int8[np.ndarray, "L"]
    starts: Int[np.ndarray, "E+1"]
    prefix_lengths: Int[np.ndarray, "E"]
    completion_lengths: Int[np.ndarray, "E S"]
    num_scored: Int[np.ndarray, "E S"]
    rows: Int[np.ndarray, "E"]

    def __init__(self, folder: Path) -> None:
        """Opens a folder written by `write`; arrays stay on disk and are read where they are used."""
        meta = json.loads((folder / "meta.json").read_text())
        for name in _ARRAYS[:-1]:
            setattr(self, name, _load(folder, name))
        values = np.load(folder / "columns.npy", allow_pickle=False)
        merged = bool(meta["sources"])
        self.source: Int[np.ndarray, "E"] = _load(folder, "source") if merged else np.zeros(len(self.rows), np.int16)
        self._sources = tuple(map(DropReport.from_dict, meta["sources"]))
        self.folder = folder
        self.columns: dict[str, Float[np.ndarray, "E"]] = dict(zip(meta["columns"], values, strict=True))
        of_completions, of_tokens = (_extra(folder, name, meta) for name in _EXTRA)
        self.completion_columns: dict[str, Float[np.ndarray, "E S"]] = of_completions
        self.token_columns: dict[str, Float[np.ndarray, "M"]] = of_tokens
        if self.token_columns:
            self._scored_starts = np.concatenate([[0], np.cumsum(self.num_scored)])
        self.report = DropReport.from_dict(meta["report"])
        self.fingerprint: str = meta["fingerprint"]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sources(self) -> tuple[DropReport, ...]:
        """Returns the report of each source."""
        return self._sources or (self.report,)

    def place(self, index: int) -> str:
        """Returns where an example is from, for messages."""
        report = self.sources[self.source[index]]
        row = f"row {report.number(int(self.rows[index]))}"
        return f"{report.source}, {row}" if len(self.sources) > 1 else row

    def __getitem__(self, index: int) -> Example:
        """Returns example `index`, with arrays of its own (not views of the file)."""
        index = range(len(self))[index]
        start, stop = self.starts[index : index + 2]
        tokens = np.array(self.tokens[start:stop])
        roles = self.roles[start:stop].astype(np.int32)
        lengths = self.completion_lengths[index]
        ends = np.cumsum([self.prefix_lengths[index], *lengths[lengths > 0]])
        completions = tuple(
            Completion(tokens[a:b], roles[a:b], *self._numbers(index, s))
            for s, (a, b) in enumerate(itertools.pairwise(ends))
        )
        columns = {name: float(values[index]) for name, values in self.columns.items()}
        return Example(tokens[: ends[0]], completions, columns, int(self.rows[index]))

    def _numbers(self, index: int, s: int) -> tuple[dict[str, float], dict[str, Float[np.ndarray, "scored"]]]:
        """Returns columns and token columns of completion s of an example."""
        columns = {name: float(values[index, s]) for name, values in self.completion_columns.items()}
        if not self.token_columns:
            return columns, {}
        first = index * self.num_scored.shape[1] + s
        start, stop = self._scored_starts[first : first + 2]
        return columns, {name: np.array(values[start:stop]) for name, values in self.token_columns.items()}


def _extra(folder: Path, name: str, meta: dict[str, Any]) -> dict[str, np.ndarray]:
    """Opens the columns of completions or of tokens, if the set has any."""
    if not meta[name]:
        return {}
    return dict(zip(meta[name], np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False), strict=True))


def write(folder: Path, examples: Iterable[Example], report: DropReport) -> bool:
    """Writes examples to a folder; `smallr.core.cache` makes it appear whole, and checks it.

    They go to the disk a part at a time, so that a set may be larger than memory.

    Args:
      folder: must not exist.
      examples: all with the same columns.
      report: completed by consuming `examples`, so it is stored after them.

    Returns:
      Whether there was an example; if not, nothing is written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".parts-", dir=folder.parent) as scratch:
        parts, iterator = [], iter(examples)
        while part := list(itertools.islice(iterator, _PART)):
            parts.append(Path(scratch) / str(len(parts)))
            _write_part(parts[-1], part)
        if parts:
            merge(folder, parts, report)
    return bool(parts)


def _write_part(folder: Path, examples: Sequence[Example]) -> None:
    """Writes the arrays of some examples, and the names of their columns."""
    completions = [completion for example in examples for completion in example.completions]
    first = examples[0].completions[0]
    names = {
        "columns": list(examples[0].columns),
        "completion_columns": list(first.columns),
        "token_columns": list(first.token_columns),
    }
    tokens, roles = [], []
    for example in examples:
        tokens += [example.prefix, *(completion.tokens for completion in example.completions)]
        roles += [
            np.full(len(example.prefix), ROLE_NONE),
            *(completion.roles for completion in example.completions),
        ]
    arrays = {
        "tokens": np.concatenate(tokens).astype(np.int32),
        "roles": np.concatenate(roles).astype(np.int8),
        "prefix_lengths": np.asarray([len(example.prefix) for example in examples], np.int32),
        "completion_lengths": _rectangle([[len(c.tokens) for c in example.completions] for example in examples]).astype(
            np.int32
        ),
        "num_scored": _rectangle([[len(c.scored) for c in example.completions] for example in examples]).astype(
            np.int32
        ),
        "rows": np.asarray([example.row for example in examples], np.int64),
        "columns": np.asarray([list(example.columns.values()) for example in examples], np.float32).T,
    }
    if names["completion_columns"]:
        values = _rectangle([[list(c.columns.values()) for c in example.completions] for example in examples])
        arrays["completion_columns"] = np.moveaxis(values, 2, 0).astype(np.float32)
    if names["token_columns"]:
        lists = [list(completion.token_columns.values()) for completion in completions]
        arrays["token_columns"] = np.concatenate(lists, axis=1).astype(np.float32)
    folder.mkdir()
    for name, array in arrays.items():
        _save(folder / f"{name}.npy", array)
    (folder / "meta.json").write_text(json.dumps(names))


def _rectangle(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Returns the rows as one array, filled up with zeros to the length of the longest."""
    arrays = [np.asarray(row) for row in rows]
    length = max(map(len, arrays))
    out = np.zeros((len(arrays), length, *arrays[0].shape[1:]), arrays[0].dtype)
    for r, array in enumerate(arrays):
        out[r, : len(array)] = array
    return out


def merge(folder: Path, parts: Sequence[Path], report: DropReport, sources: Sequence[DropReport] = ()) -> None:
    """Writes the examples of several folders, in their order, as `write` writes them all at once.

    Arrays are copied from file to file, so that memory does not limit them.

    Args:
      folder: must not exist.
      parts: at least one folder that `write` wrote. Columns that not all of them have are NaN in the others.
      report: of all of them together.
      sources: reports of the parts, where each is a set of its own.
    """
    metas = [json.loads((part / "meta.json").read_text()) for part in parts]
    names = {key: list(dict.fromkeys(name for meta in metas for name in meta[key])) for key in ("columns", *_EXTRA)}
    folder.mkdir(parents=True)
    present = [name for name in (*_ARRAYS, *_EXTRA) if name not in ("starts", *_EXTRA) or names.get(name)]
    for name in present:
        _concatenate(folder / f"{name}.npy", _Parts(parts, metas, name, names.get(name)))
    if sources:
        counts = [len(_load(part, "rows")) for part in parts]
        _save(folder / "source.npy", np.repeat(np.arange(len(parts), dtype=np.int16), counts))
    lengths = _load(folder, "prefix_lengths").astype(np.int64)
    lengths += np.sum(_load(folder, "completion_lengths"), axis=1, dtype=np.int64)
    _save(folder / "starts.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    meta = {**names, "report": report.to_dict(), "fingerprint": _fingerprint(folder, names)}
    meta["sources"] = [each.to_dict() for each in sources]
    (folder / "meta.json").write_text(json.dumps(meta))


@dataclasses.dataclass(frozen=True)
class _Parts:
    """One array of all parts, opened one after the other: there may be more than files can be open.

    Attributes:
      parts, metas: folders, and what their `meta.json` says.
      name: of the array.
      columns: names along its first axis; None where the first axis is that of the examples or tokens.
    """

    parts: Sequence[Path]
    metas: Sequence[dict[str, Any]]
    name: str
    columns: Sequence[str] | None

    def __iter__(self) -> Iterator[np.ndarray]:
        for part, meta in zip(self.parts, self.metas, strict=True):
            yield _with_names(_load(part, self.name), meta.get(self.name), self.columns)


def _load(folder: Path, name: str) -> np.ndarray:
    """Opens an array without reading it; one without elements cannot be mapped."""
    path = folder / f"{name}.npy"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        return np.load(path, allow_pickle=False)


def _with_names(array: np.ndarray, own: Sequence[str] | None, wanted: Sequence[str] | None) -> np.ndarray:
    """Returns columns in the order of `wanted`, NaN for those that are not there."""
    if wanted is None or list(own) == list(wanted):
        return array
    missing = np.full(array.shape[1:], np.nan, np.float32)
    return np.stack([array[own.index(name)] if name in own else missing for name in wanted])


def _concatenate(path: Path, arrays: _Parts) -> None:
    """Writes arrays behind one another; where other axes differ, zeros fill them up."""
    axis = 0 if arrays.columns is None else 1
    shapes = [array.shape for array in arrays]
    shape = [max(sizes) for sizes in zip(*shapes, strict=True)]
    shape[axis] = sum(each[axis] for each in shapes)
    dtype = next(iter(arrays)).dtype
    if not math.prod(shape):  # nothing can be mapped
        _save(path, np.zeros(shape, dtype))
        return
    out = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=tuple(shape))
    with open(path, "r+b") as file:  # a full disk is an error here, and would end the process in the lines below
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    start = 0
    for array in arrays:
        place = [slice(0, size) for size in array.shape]
        place[axis] = slice(start, start := start + array.shape[axis])
        out[tuple(place)] = array  # what is not written is zero
    out.flush()


def _save(path: Path, array: np.ndarray) -> None:
    try:
        np.save(path, array, allow_pickle=False)
    except OSError as error:
        if error.errno is not None:
            raise
        # NumPy says how many of the values it could write, and not that the disk is full.
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({error})", str(path)) from error


def _fingerprint(folder: Path, names: dict[str, list[str]]) -> str:
    extra = [name for name in _EXTRA if names[name]]
    digest = hashlib.sha256(json.dumps(names["columns"]).encode())
    digest.update("".join(json.dumps(names[name]) for name in extra).encode())
    for name in (*_ARRAYS, *extra):
        array = _load(folder, name)
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
