"""Identifies what goes into a stage, and keeps what comes out of it on disk.

A result is built of JSON's types, paths and rows. Rows are a list of mappings; they are written to a file of JSON lines,
whose digest is kept and checked when they are read again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smallr.core.files import FileError, write_text

_LONG = 10_000  # characters of JSON from which an identity is a digest


def identity_of(value: Any) -> Any:
    """Returns what tells an input from another one, in JSON's types.

    Args:
      value: JSON's types, a path (the content of its files counts), a config, a dataclass, a function (its name counts, and
        for a partial one its arguments), an array, a data set, or anything with a `digest`; also lists and mappings of them.

    Raises:
      TypeError: nothing is known that tells it apart.
    """
    found = _identity(value)
    text = json.dumps(found, sort_keys=True)
    return found if len(text) <= _LONG else {"sha256": _sha256(text.encode())}


def _identity(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return {"path": value.name, "sha256": digest_of_path(value)}
    if isinstance(digest := getattr(value, "digest", None), str):
        return {"digest": digest}
    if hasattr(value, "to_dict") and not hasattr(value, "column_names"):  # a ConfigDict
        return _identity(value.to_dict())
    if isinstance(value, Mapping):
        return {str(key): _identity(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_identity(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _identity(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": type(value).__qualname__, **fields}
    if isinstance(value, functools.partial):
        return [_identity(value.func), _identity(value.args), _identity(value.keywords)]
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": _sha256(value.tobytes())}
    if hasattr(value, "column_names"):  # a data set
        return [_identity(row) for row in value]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"an input of type {type(value).__name__} cannot be told from another one; give it a `digest`")


def digest_of_path(path: Path) -> str:
    """Returns a digest of a file, or of all names and files in a folder; of the name alone where there is nothing."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    listed = [(str(file.relative_to(path)), digest_of_path(file)) for file in files] or str(path)
    return _sha256(json.dumps(listed).encode())


def save(value: Any, folder: Path, name: str = "") -> Any:
    """Writes the rows in a value to files of a folder, called after the keys that lead to them.

    Returns:
      What `load` makes the value of again, in JSON's types.
    """
    if isinstance(value, Path):
        inside = value.is_relative_to(folder)
        return {"path": str(value.relative_to(folder) if inside else value.absolute())}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): save(each, folder, f"{name}.{key}".strip(".")) for key, each in value.items()}}
    if isinstance(value, list | tuple) and value and all(isinstance(row, Mapping) for row in value):
        text, file = "".join(json.dumps(row) + "\n" for row in value), f"{name or 'rows'}.jsonl"
        write_text(folder / file, text)
        return {"rows": file, "count": len(value), "sha256": _sha256(text.encode())}
    return {"json": _plain(value)}


def load(saved: Mapping[str, Any], folder: Path) -> Any:
    """Returns the value that `save` has saved.

    Raises:
      FileError: a file of rows is missing or not as it was written.
    """
    match saved:
        case {"path": path}:
            return folder / path
        case {"mapping": mapping}:
            return {key: load(each, folder) for key, each in mapping.items()}
        case {"rows": name, "sha256": digest}:
            try:
                data = (folder / name).read_bytes()
            except OSError as error:
                raise FileError(f"{folder / name} cannot be read: {error.strerror}") from error
            if _sha256(data) != digest:
                raise FileError(f"{folder / name} is not as it was written: delete {folder}, and it is made again")
            return [json.loads(line) for line in data.decode().split("\n") if line]
        case {"json": value}:
            return value
    raise KeyError(f"no value: {saved}")


def _plain(value: Any) -> Any:
    """Returns a value in JSON's types, with numpy's scalars as Python's."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings to dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns the settings that differ, in one line."""
    old, new = flat(before), flat(json.loads(json.dumps(now)))
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {old.get(key)!r} before, {new.get(key)!r} now" for key in changed)


def find(value: Any, kind: type) -> Sequence[Any]:
    """Returns all objects of a type in a value and in its lists and mappings, each once."""
    if isinstance(value, kind):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return list(dict.fromkeys(each for part in parts for each in find(part, kind)))


def replace(value: Any, kind: type, by: Any) -> Any:
    """Returns a value with `by(each)` in the place of each object of a type."""
    if isinstance(value, kind):
        return by(value)
    if isinstance(value, list | tuple):
        return type(value)(replace(each, kind, by) for each in value)
    if type(value) is dict:
        return {key: replace(each, kind, by) for key, each in value.items()}
    return value


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
