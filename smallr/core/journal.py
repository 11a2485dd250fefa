"""Keeps finished pieces of work in a file, a line each, so that a killed job goes on where it was.

Every line carries a checksum. The end of a line that a kill has cut off is removed when the file is opened; any other
damage is an error that names the line, and nothing is changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from smallr.core.files import FileError, sync_folder

_LINE = re.compile(r'\{"check": "([0-9a-f]{8})", (.*)', re.DOTALL)


class Journal:
    """Keeps finished pieces by their key, on disk when `add` returns. Threads may call every method.

    Args:
      path: of the file; made with the first piece. The caller holds the lock of its folder.
      fields: names that every entry must have.

    Raises:
      FileError: the file is damaged or cannot be read; the message names the line and says what to do.
    """

    def __init__(self, path: Path, fields: Iterable[str] = ()):
        self.path, self._fields = path, tuple(fields)
        self._lock = threading.Lock()
        self._entries = self._read()

    def __contains__(self, key: str) -> bool:
        """Returns whether a piece is finished."""
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Returns the entry of a finished piece."""
        return self._entries[key]

    def entries(self) -> dict[str, dict[str, Any]]:
        """Returns all finished pieces; the last entry of a key counts."""
        return dict(self._entries)

    def add(self, key: str, entry: Mapping[str, Any]) -> None:
        """Stores a finished piece.

        Raises:
          FileError: it cannot be written; the file is as it was before.
        """
        body = json.dumps({"key": key, "entry": dict(entry)})
        line = f'{{"check": "{_digest(body)}", {body[1:]}\n'.encode()
        with self._lock:
            size = self.path.stat().st_size if self.path.exists() else -1
            try:
                with self.path.open("ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                if self.path.exists():  # half a line may be in it, even if the file was made with it
                    os.truncate(self.path, max(size, 0))
                raise FileError(f"{self.path} cannot be written: {error}") from error
            if size < 0:
                sync_folder(self.path.parent)
            self._entries[key] = json.loads(body)["entry"]

    def _read(self) -> dict[str, dict[str, Any]]:
        found, size = read_entries(self.path, self._fields)
        if self.path.exists() and size < self.path.stat().st_size:
            os.truncate(self.path, size)
        return found


def read_entries(path: Path, fields: Iterable[str] = ()) -> tuple[dict[str, dict[str, Any]], int]:
    """Reads a journal that another process may be writing; nothing is changed.

    Returns:
      The last entry of each key, and the bytes that whole lines take: what is behind them is half a line.

    Raises:
      FileError: as `Journal`.
    """
    if path.is_dir():
        raise FileError(f"{path} is a folder where a file should be: move it away")
    if not path.exists():
        return {}, 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    found = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
        key, entry = _parse(path, line, number, fields)
        found[key] = entry
    return found, len(whole)


def _parse(path: Path, line: bytes, number: int, fields: Iterable[str]) -> tuple[str, dict[str, Any]]:
    try:
        match = _LINE.fullmatch(line.decode("utf-8"))
        if match is None:
            raise ValueError("it is no entry with a checksum")
        if _digest("{" + match[2]) != match[1]:
            raise ValueError("its checksum does not fit")
        piece = json.loads(line)
        key, entry = piece["key"], piece["entry"]
        if not isinstance(key, str) or not isinstance(entry, dict):
            raise ValueError("it is no entry")
        if missing := [name for name in fields if name not in entry]:
            raise ValueError(f"it lacks {missing[0]!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise FileError(
            f"{path}, line {number}: damaged ({reason}); delete the line, and what it held is done again"
        ) from error
    return key, entry


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8")).hexdigest()[:8]
