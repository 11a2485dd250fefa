"""Names of data sets, checked before anything heavy is imported: `smallr.data.sources` reads what they name."""

from __future__ import annotations

import difflib
import glob
import os
import re
from pathlib import Path

from smallr.data.errors import DataError, nearest
from smallr.data.files import format_of

OFFLINE_CHOICES = (
    "Without the hub: a folder written by datasets' save_to_disk, local files (json, jsonl, parquet, csv, a glob of "
    "them), tfds:NAME, or builtin:arithmetic/preference"
)
BUILTIN = ("arithmetic/preference", "arithmetic/rationale", "arithmetic/sft", "arithmetic/teacher")
PREFIXES = ("disk", "files", "tfds", "builtin", "hub")
HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.+-]+))?")


def kind_of(spec: str) -> tuple[str, str]:
    """Splits the name of a data set into one of `PREFIXES` and the rest; what exists on disk goes before the hub.

    Raises:
      DataError: nothing can be meant.
    """
    prefix, colon, rest = spec.partition(":")
    if colon and prefix in PREFIXES and rest:
        return prefix, rest
    if Path(spec).is_dir():
        return "disk", spec
    if Path(spec).is_file() or glob.has_magic(spec) or format_of(spec):
        return "files", spec
    if HUB_ID.fullmatch(spec) and "/" in spec:
        return "hub", spec
    raise DataError(
        f"data set {spec!r}: no such folder or file, and not a hub id org/name[:config]. {OFFLINE_CHOICES}."
    )


def check_source(spec: str) -> None:
    """Checks that something has this name; what is on the hub or in TFDS is looked up later.

    Raises:
      DataError: no such folder, file or built-in data set.
    """
    kind, rest = kind_of(spec)
    if kind == "disk" and not Path(rest).is_dir():
        raise DataError(f"{rest}: no such folder")
    if kind == "files":
        file_paths(rest)
    if kind == "builtin" and rest not in BUILTIN:
        raise DataError(f"builtin:{rest} must be one of: {', '.join(BUILTIN)}{nearest(rest, BUILTIN)}")


def file_paths(pattern: str) -> list[str]:
    """Returns the files that a name or a glob means.

    Raises:
      DataError: there is none; the message lists its neighbours.
    """
    expanded = os.path.expanduser(pattern)
    paths = sorted(glob.glob(expanded, recursive=True)) if glob.has_magic(pattern) else [expanded]
    paths = [path for path in paths if Path(path).is_file()]
    if not paths:
        problem = "no file matches" if glob.has_magic(pattern) else "no such file"
        raise DataError(f"{pattern}: {problem}" + _neighbours(expanded))
    return paths


def _neighbours(pattern: str) -> str:
    folder = Path(pattern).parent
    names = sorted(path.name for path in folder.iterdir() if format_of(path.name)) if folder.is_dir() else []
    if not names:
        return ""
    stems = difflib.get_close_matches(Path(pattern).stem, [Path(name).stem for name in names], n=1, cutoff=0.7)
    meant = next((f"; did you mean {name!r}?" for name in names if Path(name).stem in stems), "")
    return f"; {folder} holds {', '.join(names[:10])}{meant}"
