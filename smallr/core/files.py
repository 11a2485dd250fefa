"""Writes files and folders that appear whole or not at all, whatever ends the process while they are written.

A new file is written beside its place under a temporary name, `.NAME-HOST-PID-RANDOM`, brought to the disk and renamed.
What a killed process leaves under such a name is found by `is_leftover` and removed by `remove_leftovers`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from smallr.core.errors import UserError

_TEMPORARY = re.compile(r"\.(?P<name>.+)-(?P<host>[^-]*)-(?P<pid>\d+)-[0-9a-f]{8}")
_live: set[str] = set()  # temporary names in use by this process


class FileError(UserError, OSError):
    """Says that a file or folder cannot be read or written as things stand; the message names it and says why."""


def host_name() -> str:
    """Returns the name of this machine as it stands in lock files and temporary names: without hyphens."""
    return socket.gethostname().replace("-", "_").replace("/", "_")


def is_alive(pid: int) -> bool:
    """Returns whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


# Writing


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file for writing; it takes its place when the block ends without an error, and not before.

    Args:
      path: what is there is replaced; its folder is made.
      mode: "w" for text in UTF-8, "wb" for bytes.

    Raises:
      FileError: the file cannot be written, for instance because the disk is full or a folder stands in its place.
    """
    encoding = None if "b" in mode else "utf-8"
    with _readable_errors(path), temporary_path(path) as temporary:
        with open(temporary, mode, encoding=encoding) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder to fill; it takes its place when the block ends without an error, and not before.

    A folder that is already there is replaced. A kill between the two renames leaves neither.

    Raises:
      FileError: the folder cannot be written, or a file stands in its place.
    """
    with _readable_errors(path), temporary_path(path) as temporary:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            elif file.is_dir():
                sync_folder(file)
        sync_folder(temporary)
        _swap(temporary, path)
        sync_folder(path.parent)


def check_new_folder(target: Path) -> None:
    """Raises FileError unless a folder can appear at `target`: nothing is there, or an empty folder."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileError(f"{target} exists and is not an empty folder: choose another folder, or remove it first")


def _swap(new: Path, path: Path) -> None:
    """Puts a folder in the place of another one; another process may be doing the same."""
    while True:
        with temporary_path(path) as before:
            if path.is_dir():
                with contextlib.suppress(FileNotFoundError):
                    os.replace(path, before)
            try:
                return os.replace(new, path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise


def check_new_file(path: Path) -> None:
    """Raises FileError unless a file can be written at `path`: for work that takes minutes before it writes."""
    with _readable_errors(path), temporary_path(path) as temporary:
        if path.is_dir():
            raise IsADirectoryError(path)
        temporary.touch()


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all; see `whole_file`."""
    with whole_file(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON whole or not at all; see `whole_file`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk, where the file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` that no other process or thread uses; what has it at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = f".{path.name}-{host_name()}-{os.getpid()}-{secrets.token_hex(4)}"
    _live.add(name)
    try:
        yield path.parent / name
    finally:
        _remove(path.parent / name)
        _live.discard(name)


@contextlib.contextmanager
def _readable_errors(path: Path) -> Iterator[None]:
    """Turns an error of the file system, while `path` is written, into one that names it."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        if path.is_dir() and isinstance(error, IsADirectoryError):
            raise FileError(f"{path} is a folder where a file should be: move it away") from error
        if path.is_file() and isinstance(error, NotADirectoryError):
            raise FileError(f"{path} is a file where a folder should be: move it away") from error
        unwritable = FileError(f"{path} cannot be written: {error}")  # which names the file inside it
        unwritable.errno = error.errno
        raise unwritable from error


# Reading


def read_json(path: Path, kind: type = dict, fields: Mapping[str, type] = {}) -> Any:
    """Reads a JSON file whose top is of a given type.

    Args:
      path: of the file.
      kind: of the top.
      fields: names that a dict must have, and the type of each.

    Raises:
      FileError: it cannot be read, is no JSON, or something in it is of another type; the message names the place.
    """
    return _parsed(_content(path), str(path), kind, fields)


def read_json_lines(path: Path, fields: Mapping[str, type] = {}) -> list[dict[str, Any]]:
    """Reads a file with a JSON object on each line; arguments and errors as of `read_json`."""
    lines = enumerate(_content(path).split(b"\n"), 1)
    return [_parsed(line, f"{path}, line {number}", dict, fields) for number, line in lines if line.strip()]


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise FileError(f"{path} is a folder where a file should be: move it away")
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error


def _parsed(content: bytes, place: str, kind: type, fields: Mapping[str, type]) -> Any:
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FileError(f"{place} is damaged: byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise FileError(f"{place} is damaged: nested too deep") from error
    except ValueError as error:
        raise FileError(f"{place} is damaged: not valid JSON ({error})") from error
    if not isinstance(value, kind):
        raise FileError(f"{place} is damaged: expected a JSON {kind.__name__}, found {type(value).__name__}")
    for name, wanted in fields.items():
        if name not in value:
            raise FileError(f"{place} is damaged: it has no {name!r}")
        if not isinstance(value[name], wanted):
            raise FileError(f"{place} is damaged: {name!r} is no {wanted.__name__} but {type(value[name]).__name__}")
    return value


# What killed processes leave


def is_leftover(path: Path) -> bool:
    """Returns whether a path has a temporary name whose process has ended. One of another machine counts as alive."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is None or match["host"] != host_name():
        return False
    pid = int(match["pid"])
    return path.name not in _live if pid == os.getpid() else not is_alive(pid)


def remove_leftovers(folder: Path, names: Iterable[str] = ()) -> list[Path]:
    """Removes what killed processes have left in a folder; gives what was removed.

    Args:
      folder: it need not be there.
      names: files and folders that nobody else can be writing now, because the caller holds the folder's lock: all that
        is called `.NAME-…` for one of them is removed, whoever left it.
    """
    starts = tuple(f".{name}-" for name in names)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    removed = [path for path in found if is_leftover(path) or (path.name.startswith(starts) and path.name not in _live)]
    for path in removed:
        _remove(path)
    return removed


def _remove(path: Path) -> None:
    """Removes a file or a folder, if it is there and may be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
