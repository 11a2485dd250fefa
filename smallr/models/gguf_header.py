"""Walks the header of a GGUF file before the `gguf` package reads it, which believes every count.

The format (github.com/ggml-org/ggml, docs/gguf.md): magic, version, numbers of tensors and of metadata; then metadata as
key, type and value; then for each tensor its name, dimensions, type and offset.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from smallr.core.errors import UserError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_KEYS, _MAX_TENSORS, _MAX_ITEMS, _MAX_DIMENSIONS = 10_000, 1_000_000, 2**24, 4
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value of a type
_STRING, _ARRAY = 8, 9
_TEXT_SIZE = struct.Struct("<Q")  # before each text


class _Header:
    """Keeps a position in the file that never leaves it."""

    def __init__(self, data: mmap.mmap, path: Path):
        self._data, self._path, self._at = data, path, 0

    def fail(self, reason: str) -> UserError:
        """Returns the error of this place."""
        return UserError(f"{self._path} is not a readable GGUF file (byte {self._at}: {reason}); download it again")

    def skip(self, size: int) -> int:
        """Moves on, and gives the position before."""
        start = self._at
        if size > len(self._data) - start:
            raise self.fail(f"{size} bytes are announced, {len(self._data) - start} are left")
        self._at = start + size
        return start

    def number(self, kind: str, most: int, what: str) -> int:
        """Reads an unsigned number of struct's `kind` that is at most `most`."""
        start = self.skip(struct.calcsize(kind))
        (value,) = struct.unpack_from(f"<{kind}", self._data, start)
        if value > most:
            raise self.fail(f"{value} {what}, at most {most} are believed")
        return value

    def string(self) -> None:
        """Skips a text, which must be UTF-8."""
        size = self.number("Q", 2**31, "bytes of a text")
        start = self.skip(size)
        try:
            self._data[start : start + size].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"a text is not UTF-8 ({error.reason})") from error

    def strings(self, count: int) -> None:
        """Skips texts, of which a vocabulary and its merges have 10^5."""
        data, at, size_at = self._data, self._at, _TEXT_SIZE.unpack_from
        last = len(data) - _TEXT_SIZE.size
        for number in range(count):
            start = at + _TEXT_SIZE.size
            end = start + size_at(data, at)[0] if at <= last else start
            text = data[start:end]
            if len(text) != end - start or not (text.isascii() or _is_utf8(text)) or at > last:
                self._at = at
                for _ in range(number, count):  # one of them is refused, with the reason
                    self.string()
            at = end
        self._at = at

    def value(self, kind: int) -> None:
        """Skips a value of metadata."""
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            items, count = self.number("I", 12, "is an item's type"), self.number("Q", _MAX_ITEMS, "items of a list")
            if items == _STRING:
                self.strings(count)
            elif items in _SIZES:
                self.skip(_SIZES[items] * count)
            else:
                raise self.fail(f"lists of type {items} are not read")
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise self.fail(f"no value has type {kind}")


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def check_header(path: Path) -> None:
    """Checks that all that the header announces is there.

    Raises:
      UserError: it is not; the message names the byte.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _walk(_Header(data, path), data[:4])
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a readable GGUF file ({error})") from error


def _walk(header: _Header, magic: bytes) -> None:
    if magic != _MAGIC:
        raise header.fail(f"it begins with {magic!r}")
    header.skip(4)
    version = header.number("I", 2**32, "")
    if version not in _VERSIONS:
        raise header.fail(f"version {version}; 2 and 3 of little-endian machines are read")
    tensors = header.number("Q", _MAX_TENSORS, "tensors")
    for _ in range(header.number("Q", _MAX_KEYS, "metadata")):
        header.string()
        header.value(header.number("I", 2**32, ""))
    for _ in range(tensors):
        header.string()
        for _ in range(header.number("I", _MAX_DIMENSIONS, "dimensions")):
            header.number("Q", 2**40, "is a size")
        header.skip(4 + 8)
