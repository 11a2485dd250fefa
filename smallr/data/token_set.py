"""Keeps a tokenised data set on disk: flat arrays, mapped into memory, found again by the content they were made from."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int8

from smallr.data.batch import ROLE_NONE, Completion, Example
from smallr.data.drops import DropReport

_ARRAYS = ("tokens", "roles", "starts", "prefix_lengths", "completion_lengths", "num_scored", "rows", "columns")
# Written for sets that have such columns.
_EXTRA = ("completion_columns", "token_columns")


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
      report: what was dropped.
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
            setattr(self, name, np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        values = np.load(folder / "columns.npy", allow_pickle=False)
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

    Args:
      folder: must not exist.
      examples: all with the same columns.
      report: completed by consuming `examples`, so it is stored after them.

    Returns:
      Whether there was an example; if not, nothing is written.
    """
    parts: dict[str, list] = {name: [] for name in (*_ARRAYS, *_EXTRA)}
    names: dict[str, list[str]] = {}
    for example in examples:
        completions = example.completions
        parts["tokens"] += [example.prefix, *(completion.tokens for completion in completions)]
        parts["roles"] += [np.full(len(example.prefix), ROLE_NONE), *(completion.roles for completion in completions)]
        parts["prefix_lengths"].append(len(example.prefix))
        parts["completion_lengths"].append([len(completion.tokens) for completion in completions])
        parts["num_scored"].append([len(completion.scored) for completion in completions])
        parts["rows"].append(example.row)
        parts["columns"].append(list(example.columns.values()))
        parts["completion_columns"].append([list(completion.columns.values()) for completion in completions])
        parts["token_columns"] += [list(completion.token_columns.values()) for completion in completions]
        first = completions[0]
        names = {
            "columns": list(example.columns),
            "completion_columns": list(first.columns),
            "token_columns": list(first.token_columns),
        }
    if not parts["rows"]:
        return False
    arrays = {
        "tokens": np.concatenate(parts["tokens"]).astype(np.int32),
        "roles": np.concatenate(parts["roles"]).astype(np.int8),
        "prefix_lengths": np.asarray(parts["prefix_lengths"], np.int32),
        "completion_lengths": _rectangle(parts["completion_lengths"]).astype(np.int32),
        "num_scored": _rectangle(parts["num_scored"]).astype(np.int32),
        "rows": np.asarray(parts["rows"], np.int64),
        "columns": np.asarray(parts["columns"], np.float32).T,
    }
    if names["completion_columns"]:
        arrays["completion_columns"] = np.moveaxis(_rectangle(parts["completion_columns"]), 2, 0).astype(np.float32)
    if names["token_columns"]:
        arrays["token_columns"] = np.concatenate(parts["token_columns"], axis=1).astype(np.float32)
    _save(folder, arrays, names, report)
    return True


def _rectangle(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Returns the rows as one array, filled up with zeros to the length of the longest."""
    arrays = [np.asarray(row) for row in rows]
    length = max(map(len, arrays))
    out = np.zeros((len(arrays), length, *arrays[0].shape[1:]), arrays[0].dtype)
    for r, array in enumerate(arrays):
        out[r, : len(array)] = array
    return out


def merge(folder: Path, parts: Sequence[Path], report: DropReport) -> None:
    """Writes the examples of several folders, in their order, as `write` writes them all at once.

    Args:
      folder: must not exist.
      parts: at least one folder that `write` wrote, all of rows of one data set.
      report: of all of them together.
    """

    def whole(name: str) -> np.ndarray:
        # `columns` may be empty, which cannot be mapped into memory; it is [columns, E].
        axis, mode = (1, None) if name in ("columns", *_EXTRA) else (0, "r")
        loaded = [np.load(part / f"{name}.npy", mode, allow_pickle=False) for part in parts]
        if name in ("completion_lengths", "num_scored", "completion_columns"):
            last = 2 if name == "completion_columns" else 1
            most = max(array.shape[last] for array in loaded)
            loaded = [
                np.pad(array, [(0, 0)] * last + [(0, most - array.shape[last])]) if array.shape[last] < most else array
                for array in loaded
            ]
        return np.concatenate(loaded, axis)

    meta = json.loads((parts[0] / "meta.json").read_text())
    names = {name: meta[name] for name in ("columns", *_EXTRA)}
    present = [name for name in (*_ARRAYS, *_EXTRA) if name != "starts" and (name not in _EXTRA or names[name])]
    _save(folder, {name: whole(name) for name in present}, names, report)


def _save(folder: Path, arrays: dict[str, np.ndarray], names: dict[str, list[str]], report: DropReport) -> None:
    """Writes the arrays; `starts` follows from the lengths."""
    lengths = arrays["prefix_lengths"].astype(np.int64) + np.sum(arrays["completion_lengths"], axis=1, dtype=np.int64)
    arrays["starts"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    meta = {**names, "report": report.to_dict(), "fingerprint": _fingerprint(arrays, names)}
    folder.mkdir(parents=True)
    for name in arrays:
        np.save(folder / f"{name}.npy", arrays[name], allow_pickle=False)
    (folder / "meta.json").write_text(json.dumps(meta))


def _fingerprint(arrays: dict[str, np.ndarray], names: dict[str, list[str]]) -> str:
    extra = [name for name in _EXTRA if names[name]]
    digest = hashlib.sha256(json.dumps(names["columns"]).encode())
    digest.update("".join(json.dumps(names[name]) for name in extra).encode())
    for name in (*_ARRAYS, *extra):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
