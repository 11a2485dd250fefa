"""Tokenises a data set once for all processes of a run: process 0 does it, with all its cores, the others get the result.

They find it in the cache, if they share one with process 0: processes of one machine do, and hosts with `SMALLR_CACHE` on a
shared disk. Otherwise process 0 sends the files, and they put them into caches of their own. Each process reads the rows, and
before any work all compare what they read: hosts whose files differ would train on other batches than they say.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from smallr.core.cache import cached_folder, content_names, is_intact
from smallr.core.errors import UserError
from smallr.data.errors import DataError
from smallr.data.token_set import TokenSet
from smallr.data.tokenize import TokenizeOptions, block_digests, token_folder, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CHUNK = 64 * 2**20  # bytes that are sent at once


class _NotReceivedError(Exception):
    """Says that the files have been sent and could not be kept; the process then tokenises by itself."""


def tokenize_together(
    rows: datasets.Dataset,
    tokenizer: PreTrainedTokenizerFast,
    options: TokenizeOptions,
    *,
    source: str = "rows",
    numbers: Sequence[int] = (),
) -> TokenSet:
    """Tokenises rows once for all processes, which all call this; of one process it is `tokenize`.

    Args:
      rows: of all processes the same.
      tokenizer: likewise.
      options: likewise.
      source: as in `tokenize`.
      numbers: as in `tokenize`.

    Raises:
      DataError: a process has other rows, or another tokenizer, than process 0; or what `tokenize` raises, in all of them.
    """

    def find() -> TokenSet:
        return tokenize(rows, tokenizer, options, source=source, numbers=numbers)

    if not (jax.distributed.is_initialized() and jax.process_count() > 1):
        return find()
    first, error = jax.process_index() == 0, ""
    try:
        folder = token_folder(rows, tokenizer, options, source=source)
    except UserError as mistake:  # its rows or its tokenizer cannot be used
        folder, error = None, str(mistake)
    _raise_for_all(error)
    check_same(source, folder.name, rows)
    if first:
        try:
            find()
        except UserError as mistake:
            error = str(mistake)
    _raise_for_all(error)
    _share(folder)
    return find()


def check_same(source: str, key: str, rows: datasets.Dataset) -> None:
    """Compares what the processes are about to tokenise.

    Raises:
      DataError: one has something else; the message names it, and the first rows that differ.
    """
    keys = _gathered(key)
    others = [index for index, other in enumerate(keys) if other != keys[0]]
    if not others:
        return
    found = [json.loads(text) for text in _gathered(json.dumps([len(rows), *block_digests(rows)]))]
    for index in others:
        (count, *ours), (expected, *theirs) = found[index], found[0]
        who = f"process {index} of {len(keys)}"
        if count != expected:
            raise DataError(
                f"{source}: {who} reads {count} rows, process 0 reads {expected}; give all hosts the same files"
            )
        size = -(-count // max(len(ours), 1))
        for block, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            if mine != other:
                last = min((block + 1) * size, count) - 1
                raise DataError(
                    f"{source}: {who} reads other rows than process 0, first among rows {block * size} to {last}; give all "
                    "hosts the same files"
                )
        raise DataError(
            f"{source}: {who} has another tokenizer or other options than process 0; give all hosts the same model files, "
            "config and version of smallr"
        )


def _share(folder: Path) -> None:
    """Brings a folder of the cache from process 0 to the processes that lack it; what cannot be shared is made again."""
    has = np.asarray(multihost_utils.process_allgather(np.asarray(is_intact(folder, quiet=True))))
    if has.all() or not has[0]:
        return
    first, missing = jax.process_index() == 0, not has[jax.process_index()]
    names = content_names(folder) if first else []
    (listing, *_) = _gathered(json.dumps([[name, (folder / name).stat().st_size] for name in names]))
    files = json.loads(listing)
    if first:
        logging.info("sending %d files of tokens to %d processes", len(files), int((~has).sum()))

    took_part = False

    def receive(target: Path | None) -> None:
        nonlocal took_part
        if took_part:  # the cache tries elsewhere, but nothing is sent twice
            raise _NotReceivedError
        took_part = True
        _receive(files, target)

    if missing:
        with contextlib.suppress(_NotReceivedError):
            cached_folder(folder, receive)
        if not took_part:  # somebody else has just made the folder
            receive(None)
        return
    for name, size in files:  # the collectives are for all, also for those that have it
        with (folder / name).open("rb") as file:
            for start in range(0, size, _CHUNK):
                _sent(file.read(_CHUNK), min(_CHUNK, size - start))


def _receive(files: Sequence[tuple[str, int]], target: Path | None) -> None:
    """Writes what process 0 sends to a folder, or nowhere. It takes all even if it cannot write, so that nobody waits for it.

    Raises:
      OSError: what was sent could not be written.
    """
    failure: OSError | None = None
    for name, size in files:
        chunks = (_sent(None, min(_CHUNK, size - start)) for start in range(0, size, _CHUNK))
        if target is not None and failure is None:
            try:
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    for chunk in chunks:
                        file.write(chunk)
            except OSError as error:
                failure = error
        for _ in chunks:
            pass
    if failure is not None:
        raise failure


def _sent(content: bytes | None, size: int) -> bytes:
    """Returns the bytes that process 0 has; who lacks them gives None."""
    mine = np.zeros(size, np.uint8) if content is None else np.frombuffer(content, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine)).astype(np.uint8).tobytes()


def _gathered(text: str) -> list[str]:
    """Returns the text of each process."""
    content = np.frombuffer(text.encode(), np.uint8)
    longest = int(np.max(multihost_utils.process_allgather(np.asarray(len(content)))))
    padded = np.zeros(longest + 4, np.uint8)
    padded[:4] = np.frombuffer(np.asarray(len(content), "<u4").tobytes(), np.uint8)
    padded[4 : 4 + len(content)] = content
    rows = np.asarray(multihost_utils.process_allgather(padded)).astype(np.uint8)
    return [row[4 : 4 + int(np.frombuffer(row[:4].tobytes(), "<u4")[0])].tobytes().decode() for row in rows]


def _raise_for_all(error: str) -> None:
    """Raises the first process's error in all of them, so that none waits for one that has stopped."""
    for index, message in enumerate(_gathered(error)):
        if message:
            raise DataError(message if index == jax.process_index() else f"process {index}: {message}")
