"""Files that appear whole or not at all: faults at every step of a write, and what killed processes leave."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from smallr.core import files
from smallr.core.errors import UserError
from smallr.core.files import is_leftover, read_json, remove_leftovers, whole_file, whole_folder, write_json, write_text


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def fill(path, fault) -> None:
    with whole_file(path) as file:
        file.write("half")
        fault()


def fill_folder(path, fault) -> None:
    with whole_folder(path) as folder:
        (folder / "x").write_text("half")
        fault()


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_fault_at_any_step_leaves_what_was_there(step, tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if step != "write":
            patch.setattr(files.os, step, full)
        with pytest.raises(UserError, match=r"a\.txt cannot be written: .*No space left"):
            fill(path, full if step == "write" else lambda: None)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]
    write_text(path, "after")
    assert path.read_text() == "after"


def test_an_error_of_the_caller_writes_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fill(tmp_path / "a", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fill_folder(tmp_path / "b", lambda: 1 / 0)
    assert names(tmp_path) == []


def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch):
    for text in ("one", "two"):
        with whole_folder(tmp_path / "data") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / text).write_text(text)
    assert names(tmp_path / "data" / "deep") == ["two"]
    assert names(tmp_path) == ["data"]


@pytest.mark.parametrize(("umask", "of_file", "of_folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_follow_the_umask(umask, of_file, of_folder, tmp_path):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        with whole_folder(tmp_path / "b") as folder:
            (folder / "c").write_text("")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.json", "b/c", "b")]
    assert modes == [of_file, of_file, of_folder]


def test_what_stands_in_the_place_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="folder is a folder where a file should be"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(UserError, match="file is a file where a folder should be"), whole_folder(tmp_path / "file"):
        pass
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "file" / "below", "x")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "line 1 column"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[]", "expected a JSON dict, found list"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_damaged_json_is_named(content, message, tmp_path):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"run.json is damaged: .*{message}"):
        read_json(path)


def test_json_is_read_as_written_and_other_faults_are_named(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, "ü"]})
    assert read_json(tmp_path / "a.json") == {"a": [1, "ü"]}
    with pytest.raises(UserError, match="is a folder where a file should be"):
        read_json(tmp_path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_json(tmp_path / "b.json")


@pytest.mark.process
def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path):
    host, gone, alive = files.host_name(), dead(), os.getppid()
    left = [f".a.json-{host}-{gone}-0123abcd", f".rows-x-{host}-{gone}-0123abcd", f".a-{host}-{os.getpid()}-0123abcd"]
    kept = [
        f".a.json-{host}-{alive}-0123abcd",
        f".a.json-elsewhere-{gone}-0123abcd",
        ".gitignore",
        ".run.json-abc",
        "a.json",
        f"a.json-{host}-{gone}-0123abcd",
    ]
    for name in left + kept:
        (tmp_path / name).mkdir() if "rows" in name else (tmp_path / name).write_text("")
    with whole_file(tmp_path / "now") as file:
        assert not is_leftover(tmp_path / os.path.basename(file.name))
        assert {path.name for path in remove_leftovers(tmp_path)} == set(left)
    assert names(tmp_path) == sorted([*kept, "now"])
    # The holder of a folder's lock knows that nobody else is writing.
    assert {path.name for path in remove_leftovers(tmp_path, ("run.json", "a.json"))} == set(kept[:2]) | {kept[3]}
    assert remove_leftovers(tmp_path / "missing") == []


KILLED = """
import os, signal, sys
from pathlib import Path
from smallr.core.files import whole_folder
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.process
def test_a_kill_leaves_a_name_that_is_recognised(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "data")], check=False, timeout=60)
    (left,) = tmp_path.iterdir()
    assert is_leftover(left)
    assert remove_leftovers(tmp_path) == [left]
    assert names(tmp_path) == []
