"""Keeps on disk what smallr can compute again: each entry is checked before it is believed.

An entry is a file (`Cache`) or a folder (`cached_folder`) with the SHA-256 of its content. A damaged entry counts as
missing: a warning names it, and what is computed in its place replaces it. Entries appear whole or not at all. A cache
that cannot be written costs time, never a run: a warning says so, and the work goes on without.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

from smallr.core.errors import UserError
from smallr.core.files import remove_leftovers, temporary_path, whole_file

if TYPE_CHECKING:  # the command line imports this module before it needs NumPy
    import numpy as np

_MAGIC = b"smallr-entry-1\n"
_SEAL = "digests.json"  # of a folder: size and SHA-256 of its files
# Errors that say that nothing can be stored there, as opposed to errors of what was to be stored.
_NO_STORAGE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EFBIG,
    errno.EIO,
)


def cache_dir(*parts: str) -> Path:
    """Returns the folder `$SMALLR_CACHE/<parts>` (default `~/.cache/smallr`), created if it is missing.

    Where it cannot be created, the folder is a temporary one of this process.
    """
    root = os.environ.get("SMALLR_CACHE")
    folder = (Path(root) if root else Path.home() / ".cache" / "smallr").joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
    except OSError as error:
        temporary = _temporary_root().joinpath(*parts)
        _warn_once(f"the cache folder {folder} cannot be made ({error}); this process keeps its entries in {temporary}")
        temporary.mkdir(parents=True, exist_ok=True)
        return temporary
    return folder


class Cache:
    """Stores entries of one kind as files under `cache_dir(kind)`; the identity of an entry is any text.

    An entry stores the SHA-256 of its identity and content, so that a damaged file, and one under another's name, are
    taken for missing.
    """

    def __init__(self, kind: str):
        self._kind, self._folder = kind, cache_dir(kind)

    def path(self, identity: str) -> Path:
        """Returns the file of an entry."""
        return self._folder / hashlib.sha256(identity.encode()).hexdigest()[:32]

    def get(self, identity: str) -> bytes | None:
        """Returns what was stored, or None if there is nothing intact."""
        path = self.path(identity)
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logging.warning("cache: %s cannot be read (%s); it is computed again", path, error)
            return None
        content = unsealed(stored, identity)
        if content is None:
            logging.warning("cache: %s is damaged (its digest differs); it is computed again", path)
        return content

    def put(self, identity: str, content: bytes) -> None:
        """Stores an entry, in place of one that is there; where that is impossible, a warning says so."""
        try:
            with whole_file(self.path(identity), "wb") as file:
                file.write(sealed(content, identity))
        except OSError as error:
            reason = error.__cause__ or error  # without the name of the entry: one warning is enough for all
            _warn_once(f"the cache of kind {self._kind} cannot be written ({reason}); the work goes on without it")

    def get_json(self, identity: str) -> Any | None:
        """Returns a value that `put_json` stored, or None."""
        content = self.get(identity)
        return None if content is None else json.loads(content)

    def put_json(self, identity: str, value: Any) -> None:
        """Stores what JSON can hold."""
        self.put(identity, json.dumps(value).encode())

    def get_array(self, identity: str) -> np.ndarray | None:
        """Returns an array that `put_array` stored, or None."""
        import numpy as np

        content = self.get(identity)
        return None if content is None else np.load(io.BytesIO(content), allow_pickle=False)

    def put_array(self, identity: str, array: np.ndarray) -> None:
        """Stores an array of numbers."""
        import numpy as np

        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        self.put(identity, file.getvalue())


def sealed(content: bytes, identity: str) -> bytes:
    """Puts a mark and the digest of identity and content before the content."""
    return _MAGIC + _digest(content, identity) + content


def unsealed(stored: bytes, identity: str) -> bytes | None:
    """Returns the content of a sealed entry, or None if it is not what was stored under this identity."""
    start = len(_MAGIC) + hashlib.sha256().digest_size
    content = stored[start:]
    return content if stored[:start] == _MAGIC + _digest(content, identity) else None


def _digest(content: bytes, identity: str) -> bytes:
    digest = hashlib.sha256(f"{len(identity)} {identity} ".encode())
    digest.update(content)
    return digest.digest()


def cached_folder(folder: Path, build: Callable[[Path], Any]) -> Path:
    """Returns an intact folder of the cache, built if it is missing or damaged.

    Args:
      folder: where the entry belongs.
      build: fills a folder, which does not exist yet, with the entry.

    Returns:
      `folder`; or a temporary folder of this process, where the cache cannot be written.

    Raises:
      UserError: neither can be written.
    """
    if is_intact(folder):
        return folder
    try:
        return _build(folder, build)
    except OSError as error:
        if error.errno not in _NO_STORAGE:
            raise
        temporary = _temporary_root() / folder.parent.name / folder.name
        _warn_once(f"the cache folder {folder.parent} cannot be written ({error}); {temporary} is used instead")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        return temporary if is_intact(temporary) else _build(temporary, build)
    except OSError as error:
        if error.errno not in _NO_STORAGE:
            raise
        raise UserError(
            f"neither {folder.parent} nor {temporary.parent} can be written ({error}): free some space, or let "
            "SMALLR_CACHE or TMPDIR name a folder on another disk"
        ) from error


def _build(folder: Path, build: Callable[[Path], Any]) -> Path:
    with temporary_path(folder) as scratch:
        scratch.mkdir()
        build(scratch / "new")
        seal(scratch / "new")
        replace_folder(scratch / "new", folder)
    return folder


def replace_folder(new: Path, folder: Path) -> None:
    """Moves a sealed folder into its place; an intact one of another process, which was faster, stays.

    Raises:
      OSError: something else is in its place and cannot be moved away.
    """
    for number in range(3):  # others may move theirs at the same time
        if is_intact(folder, quiet=True):
            return
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, new.parent / f"before-{number}")
        try:
            os.rename(new, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
    raise OSError(errno.EEXIST, "another process keeps replacing it", str(folder))


def seal(folder: Path) -> None:
    """Brings a folder's files to the disk and writes their digests beside them."""
    text = json.dumps(_digests(folder, sync=True), sort_keys=True)
    with whole_file(folder / _SEAL, "wb") as file:
        file.write(sealed(text.encode(), _SEAL))


def is_intact(folder: Path, *, quiet: bool = False) -> bool:
    """Returns whether a folder holds exactly the files that were sealed; a warning names a damaged one."""
    try:
        os.lstat(folder)
    except OSError:
        return False
    try:
        text = unsealed((folder / _SEAL).read_bytes(), _SEAL)
        reason = "its digest differs" if text is None or json.loads(text) != _digests(folder) else ""
    except OSError as error:
        reason = str(error)
    if reason and not quiet:
        logging.warning("cache: %s is damaged (%s); it is made again", folder, reason)
    return not reason


def content_names(folder: Path) -> list[str]:
    """Returns the files of a folder of the cache, without its seal."""
    return list(_digests(folder))


def _digests(folder: Path, sync: bool = False) -> dict[str, list[Any]]:
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / _SEAL):
        with open(path, "rb") as file:
            if sync:
                os.fsync(file.fileno())
            found[path.relative_to(folder).as_posix()] = [
                os.fstat(file.fileno()).st_size,
                hashlib.file_digest(file, "sha256").hexdigest(),
            ]
    return found


_remove_leftovers = functools.cache(remove_leftovers)  # once a process looks at a folder


# The folder is removed when the process ends.
_TEMPORARY: list[tempfile.TemporaryDirectory] = []


def _temporary_root() -> Path:
    if not _TEMPORARY:
        _TEMPORARY.append(tempfile.TemporaryDirectory(prefix="smallr-cache-", ignore_cleanup_errors=True))
    return Path(_TEMPORARY[0].name)


@functools.cache
def _warn_once(message: str) -> None:
    logging.warning("cache: %s", message)
