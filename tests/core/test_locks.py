"""Locks of folders: between processes, threads and machines, and after kills."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from smallr.core import locks
from smallr.core.errors import UserError
from smallr.core.files import host_name
from smallr.core.locks import FolderLock, holder_of, living_holder

HOLDER = """
import os, sys, time
from pathlib import Path
from smallr.core.locks import FolderLock
with FolderLock(Path(sys.argv[1]), "run"):
    if len(sys.argv) > 2 and os.fork() == 0:  # a child that outlives its parent
        os.setsid()
        print("child", os.getpid(), flush=True)
        time.sleep(60)
    print("locked", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, *more: str) -> subprocess.Popen:
    """Another process that holds a folder's lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    process.said = [process.stdout.readline() for _ in range(1 + len(more))]
    assert any("locked" in line for line in process.said)
    return process


@pytest.mark.process
def test_a_second_process_is_refused_and_told_who_is_first_and_a_kill_frees(tmp_path):
    process = holder(tmp_path / "out", "fork")
    child = next(int(line.split()[1]) for line in process.said if "child" in line)
    try:
        with pytest.raises(UserError, match=rf"out: process {process.pid} on {host_name()} works on this CRV run"):
            FolderLock(tmp_path / "out", "CRV run").acquire()
        assert living_holder(tmp_path / "out").pid == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)  # a forked child lives on, and does not keep the lock
        assert holder_of(tmp_path / "out").pid == process.pid
        assert living_holder(tmp_path / "out") is None
        with FolderLock(tmp_path / "out"):
            assert holder_of(tmp_path / "out").pid == os.getpid()
    finally:
        os.kill(child, signal.SIGKILL)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.process
def test_waiting_for_a_lock(tmp_path):
    process = holder(tmp_path)
    threading.Timer(0.2, process.stdin.close).start()
    start, lock = time.monotonic(), FolderLock(tmp_path, "cache entry")
    lock.acquire(wait=True)
    assert time.monotonic() - start > 0.1
    lock.release()
    lock.release()
    process.wait(timeout=60)


def test_the_thread_that_holds_a_lock_may_take_it_again_and_no_other(tmp_path):
    caught = []

    def other() -> None:
        try:
            FolderLock(tmp_path).acquire()
        except UserError as error:
            caught.append(str(error))

    with FolderLock(tmp_path, "stage"):
        with FolderLock(tmp_path, "run"):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert holder_of(tmp_path) is not None
    assert re.search(r"\(this process\) works on this run", caught[0])
    assert living_holder(tmp_path) is None


def test_a_holder_on_another_machine_counts_as_alive_while_it_touches_its_file(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    with pytest.raises(UserError, match=r"process 7 on elsewhere works on this run; if it has ended, .* 30 seconds"):
        FolderLock(tmp_path).acquire()
    assert living_holder(tmp_path).host == "elsewhere"
    long_ago = time.time() - 31
    os.utime(path, (long_ago, long_ago))
    assert living_holder(tmp_path) is None
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.01)
    with FolderLock(tmp_path):
        os.utime(path, (long_ago, long_ago))
        for _ in range(500):
            if time.time() - path.stat().st_mtime < 20:
                break
            time.sleep(0.01)
        else:
            pytest.fail("the holder touches its file")


def test_where_there_are_no_locks_the_file_tells(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    (tmp_path / ".lock").write_text(json.dumps({"host": host_name(), "pid": os.getppid()}))
    with pytest.raises(UserError, match=f"process {os.getppid()} on"):
        FolderLock(tmp_path).acquire()
    for left in ("", "[]", '{"host": 1}', '{"host": "a", "pid": []}'):
        (tmp_path / ".lock").write_text(left)
        with FolderLock(tmp_path):
            assert holder_of(tmp_path).pid == os.getpid()


def test_what_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="where a folder should be"):
            FolderLock(path).acquire()
