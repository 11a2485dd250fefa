"""A tokenised data set on disk: flat arrays, mapped into memory, found again by the content they were made from."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Int8

from smallr.data.batch import ROLE_NONE, Completion, Example
from smallr.data.drops import DropReport

_ARRAYS = ("tokens", "roles", "starts", "prefix_lengths", "completion_lengths", "num_scored", "rows", "columns")

# What opening a damaged folder raises.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError)


class TokenSet(Sequence[Example]):
    """Examples of one data set; E examples, S completions each, L tokens in all.

    Attributes:
      tokens, roles: int32 and int8 [L]; example after example, prefix then completions.
      starts: int64 [E + 1], where each example begins in `tokens`.
      prefix_lengths: int32 [E].
      completion_lengths: int32 [E, S].
      num_scored: int32 [E, S], scored tokens.
      rows: int64 [E], row of the source.
      columns: float32 [E] each; `beta` (NaN: none) and `gap` (-1: none, else an index of `rows.GAPS`) for pairs.
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
        self.report = DropReport.from_dict(meta["report"])
        self.fingerprint: str = meta["fingerprint"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        """Example `index`, with arrays of its own (not views of the file)."""
        index = range(len(self))[index]
        start, stop = self.starts[index : index + 2]
        tokens = np.array(self.tokens[start:stop])
        roles = self.roles[start:stop].astype(np.int32)
        ends = np.cumsum([self.prefix_lengths[index], *self.completion_lengths[index]])
        completions = tuple(Completion(tokens[a:b], roles[a:b]) for a, b in itertools.pairwise(ends))
        columns = {name: float(values[index]) for name, values in self.columns.items()}
        return Example(tokens[: ends[0]], completions, columns, int(self.rows[index]))


def write(folder: Path, examples: Iterable[Example], report: DropReport) -> bool:
    """Writes examples so that `folder` either does not exist or is complete.

    Args:
      folder: replaced if it is there.
      examples: all with the same number of completions and the same columns.
      report: completed by consuming `examples`, so it is stored after them.

    Returns:
      Whether there was an example; if not, nothing is written.
    """
    tokens, roles, prefix, completions, scored, rows, columns = [], [], [], [], [], [], []
    for example in examples:
        tokens += [example.prefix, *(completion.tokens for completion in example.completions)]
        roles += [np.full(len(example.prefix), ROLE_NONE), *(completion.roles for completion in example.completions)]
        prefix.append(len(example.prefix))
        completions.append([len(completion.tokens) for completion in example.completions])
        scored.append([np.count_nonzero(completion.roles) for completion in example.completions])
        rows.append(example.row)
        columns.append(list(example.columns.values()))
        names = list(example.columns)
    if not rows:
        return False
    arrays = {
        "tokens": np.concatenate(tokens).astype(np.int32),
        "roles": np.concatenate(roles).astype(np.int8),
        "prefix_lengths": np.asarray(prefix, np.int32),
        "completion_lengths": np.asarray(completions, np.int32),
        "num_scored": np.asarray(scored, np.int32),
        "rows": np.asarray(rows, np.int64),
        "columns": np.asarray(columns, np.float32).T,
    }
    _save(folder, arrays, names, report)
    return True


def merge(folder: Path, parts: Sequence[Path], report: DropReport) -> None:
    """Writes the examples of several folders, in their order, as `write` writes them all at once.

    Args:
      folder: replaced if it is there.
      parts: at least one folder that `write` wrote, all of rows of one data set.
      report: of all of them together.
    """

    def whole(name: str) -> np.ndarray:
        # `columns` may be empty, which cannot be mapped into memory; it is [columns, E].
        axis, mode = (1, None) if name == "columns" else (0, "r")
        return np.concatenate([np.load(part / f"{name}.npy", mode, allow_pickle=False) for part in parts], axis)

    names = json.loads((parts[0] / "meta.json").read_text())["columns"]
    _save(folder, {name: whole(name) for name in _ARRAYS if name != "starts"}, names, report)


def _save(folder: Path, arrays: dict[str, np.ndarray], names: list[str], report: DropReport) -> None:
    """Writes the arrays, all but `starts`, which follows from the lengths."""
    lengths = arrays["prefix_lengths"].astype(np.int64) + np.sum(arrays["completion_lengths"], axis=1, dtype=np.int64)
    arrays["starts"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    meta = {"columns": names, "report": report.to_dict(), "fingerprint": _fingerprint(arrays, names)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        for name in _ARRAYS:
            np.save(scratch / f"{name}.npy", arrays[name], allow_pickle=False)
        (scratch / "meta.json").write_text(json.dumps(meta))
        _move(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _move(scratch: Path, folder: Path) -> None:
    """Puts `scratch` in the place of `folder`, unless a process that was faster has written the same there."""
    try:
        os.replace(scratch, folder)
    except OSError:
        if not folder.is_dir():
            raise
        try:
            TokenSet(folder)
        except UNREADABLE:
            shutil.rmtree(folder)
            os.replace(scratch, folder)


def _fingerprint(arrays: dict[str, np.ndarray], names: list[str]) -> str:
    digest = hashlib.sha256(json.dumps(names).encode())
    for name in _ARRAYS:
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
