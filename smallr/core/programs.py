"""Keeps compiled programs on disk with digests, since JAX's persistent cache trusts what it reads.

JAX reaches its cache through `epath`, which takes path classes for URIs. The class here seals every file, so that a
damaged program is compiled again, and so that a killed process or a full disk leaves none behind.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax
from absl import logging
from etils import epath

from smallr.core.cache import cache_dir, sealed, unsealed
from smallr.core.files import temporary_path

_SCHEME = "smallr-programs://"
# Below the folder that the user names, so that plain JAX processes that use the same one do not meet sealed files.
_SUBFOLDER = "sealed"
# Reading a program takes about a hundredth of a second. A start needs some thirty that compile in a tenth each, which JAX by
# itself would not keep.
SHORTEST = 0.05
_THRESHOLD = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


class _SealedPath(type(epath.Path("."))):
    """Represents a file whose content is sealed on disk; a damaged one does not exist."""

    if sys.version_info >= (3, 12):

        def __init__(self, *parts: str | os.PathLike[str]):
            # Since 3.12 a path takes its parts here, and `epath.Path(uri)` calls this once more, with the URI.
            super().__init__(*(part.removeprefix(_SCHEME) if isinstance(part, str) else part for part in parts))

    def exists(self) -> bool:
        """Returns whether the file is there and intact; removes a damaged one, so that JAX stores it again."""
        path = Path(self)
        try:
            if unsealed(path.read_bytes(), self.name) is not None:
                return True
            logging.warning("cache: the program %s is damaged (its digest differs); it is compiled again", path)
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            logging.warning("cache: the program %s cannot be read (%s); it is compiled again", path, error)
        return False

    def read_bytes(self) -> bytes:
        """Returns the content.

        Raises:
          OSError: there is none that is intact; JAX then compiles.
        """
        content = unsealed(Path(self).read_bytes(), self.name)
        if content is None:
            raise OSError(f"{self} is damaged")
        return content

    def write_bytes(self, data: bytes) -> int:
        """Stores the content with its digest; where that is impossible, the program is not kept."""
        try:
            with temporary_path(Path(self)) as temporary:
                temporary.write_bytes(sealed(data, self.name))
                os.replace(temporary, self)  # not brought to the disk: what a power cut damages, the digest shows
        except OSError as error:
            logging.log_first_n(
                logging.WARNING, "cache: compiled programs cannot be kept in %s (%s)", 1, self.parent, error
            )
        return len(data)


@epath.register_path_cls(_SCHEME)
class _ProgramURI:
    """Makes the sealed path of a URI."""

    def __new__(cls, uri: str) -> _SealedPath:
        return _SealedPath(uri.removeprefix(_SCHEME))


def keep_programs(min_seconds: float = SHORTEST) -> None:
    """Lets JAX keep compiled programs in `$JAX_COMPILATION_CACHE_DIR`, else in the cache of smallr.

    Call it before the first compilation.

    Args:
      min_seconds: programs that compile faster are not kept; `$JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS` goes before.
    """
    named = jax.config.jax_compilation_cache_dir
    if named is not None and "://" in named:
        return  # a bucket, which JAX writes itself, or called before
    folder = Path(named).expanduser().absolute() / _SUBFOLDER if named else cache_dir("compiled", _SUBFOLDER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.warning("cache: compiled programs cannot be kept in %s (%s)", folder, error)
        jax.config.update("jax_enable_compilation_cache", False)
        return
    jax.config.update("jax_compilation_cache_dir", f"{_SCHEME}{folder}")
    if _THRESHOLD not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", min_seconds)
