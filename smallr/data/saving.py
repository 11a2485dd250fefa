"""Writes data sets to disk whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import DatasetDict

from smallr.core.files import whole_folder


def save_splits(splits: DatasetDict, target: str | os.PathLike[str]) -> None:
    """Writes splits for `load_from_disk`; a data set that is there is replaced.

    It is saved beside the target and renamed, so that nobody ever sees half a data set.

    Raises:
      FileError: the folder cannot be written.
    """
    with whole_folder(Path(target)) as folder, _no_bars():
        # Without a shard an empty split cannot be read again.
        splits.save_to_disk(folder, num_shards={name: None if len(rows) else 1 for name, rows in splits.items()})


def save_rows(rows: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Writes one data set, as `save_splits` does."""
    with whole_folder(target) as folder, _no_bars():
        datasets.Dataset.from_list([dict(row) for row in rows]).save_to_disk(folder, num_shards=1)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Hides progress bars, which `datasets` switches for the whole process: saving takes milliseconds."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
