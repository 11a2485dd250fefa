"""A disk that is full: work goes on where it can, and else ends with one error."""

from __future__ import annotations

import errno
import os

import datasets
import numpy as np
import pytest

from smallr.core.files import FileError
from smallr.core.locks import FolderLock
from smallr.core.stages import StageFolder
from smallr.data.tokenize import TokenizeOptions, tokenize
from tests.data.toy_tokenizer import build


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_lock_that_cannot_be_written_is_named_and_left_free(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("smallr.core.locks.os.pwrite", full)
        for _ in range(2):
            with pytest.raises(FileError, match=rf"{tmp_path / 'out'} cannot be written: No space left on device"):
                StageFolder(tmp_path / "out", {}).__enter__()
    with FolderLock(tmp_path / "out"):
        pass


def test_arrays_that_numpy_cannot_write_whole_go_elsewhere(tmp_path, monkeypatch):
    """NumPy's error for a short write has no number: as `ndarray.tofile` raises it."""
    save, cache = np.save, tmp_path / "cache"

    def short(path, array, **options):
        if str(path).startswith(str(cache)):
            raise OSError(f"{array.size} requested and 16 written")
        save(path, array, **options)

    rows = datasets.Dataset.from_list([{"prompt": "2+2?", "completion": "4"}])
    arguments = {"cache": cache, "source": "rows"}
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", short)
        found = tokenize(rows, build(), TokenizeOptions("sft", 50), **arguments)
    assert [each for each in cache.iterdir() if each.is_dir()] == []
    again = tokenize(rows, build(), TokenizeOptions("sft", 50), **arguments)
    assert found.tokens.tolist() == again.tokens.tolist()
