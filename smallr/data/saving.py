"""Data sets on disk, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets import DatasetDict


def save_splits(splits: DatasetDict, target: str | os.PathLike[str]) -> None:
    """Writes splits for `load_from_disk`; a data set that is there is replaced.

    It is saved beside the target and renamed, so that nobody ever sees half a data set.

    Raises:
      OSError: the folder of the target cannot be written.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        with _no_bars():
            # Without a shard an empty split cannot be read again.
            splits.save_to_disk(new, num_shards={name: None if len(rows) else 1 for name, rows in splits.items()})
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:  # another process built the same in the meantime
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Saving takes milliseconds: no progress bars, which `datasets` switches for the whole process."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
