"""Cache entries under attack: nothing damaged is believed, and a cache that cannot be used stops nobody."""

import json
import multiprocessing
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from smallr.core import cache as module
from smallr.core.cache import Cache, cache_dir, cached_folder, is_intact, seal
from smallr.core.errors import UserError
from smallr.core.files import host_name


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    module._warn_once.cache_clear()


def damages(content: bytes, seed: int, count: int):
    """Flips of a bit, zeroed stretches, truncations, additions."""
    rng = random.Random(seed)
    for number in range(count):
        place = rng.randrange(len(content))
        length = rng.randint(1, 64)
        stretch = content[place : place + length]
        yield [
            content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :],
            content[:place] + bytes(len(stretch)) + content[place + length :] if any(stretch) else content[:place],
            content[:place],
            content + rng.randbytes(length),
        ][number % 4]


def test_entries_come_back():
    store = Cache("kind")
    assert store.get("a") is None
    store.put("a", b"content")
    store.put_json("b", {"x": [1.5, None]})
    store.put_array("c", np.arange(6.0, dtype=np.float32).reshape(2, 3))
    again = Cache("kind")
    assert again.get("a") == b"content"
    assert again.get_json("b") == {"x": [1.5, None]}
    np.testing.assert_array_equal(again.get_array("c"), np.arange(6.0).reshape(2, 3))
    assert Cache("other").get("a") is None


def test_no_damage_of_a_file_is_believed(caplog):
    store = Cache("kind")
    store.put_array("identity", np.arange(40.0))
    path = store.path("identity")
    intact = path.read_bytes()
    for damaged in damages(intact, seed=0, count=200):
        path.write_bytes(damaged)
        caplog.clear()
        assert store.get_array("identity") is None
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(path) in caplog.text
    store.put_array("identity", np.arange(40.0))
    assert path.read_bytes() == intact


def test_an_entry_under_anothers_name_is_not_believed():
    store = Cache("kind")
    store.put("a", b"of a")
    os.replace(store.path("a"), store.path("b"))
    assert store.get("b") is None


def fill(folder):
    """An entry that is a folder."""
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "numbers").write_bytes(bytes(range(256)))
    (folder / "meta.json").write_text(json.dumps({"rows": 3}))


def test_no_damage_of_a_folder_is_believed(caplog):
    folder = cache_dir("sets") / "entry"
    built = []

    def build(target):
        built.append(target)
        fill(target)

    assert cached_folder(folder, build) == folder
    assert cached_folder(folder, build) == folder
    assert len(built) == 1
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 3
    for seed, path in enumerate(files):
        for damaged in damages(path.read_bytes(), seed, 20):
            path.write_bytes(damaged)
            caplog.clear()
            before = len(built)
            assert cached_folder(folder, build) == folder
            assert (len(built), is_intact(folder)) == (before + 1, True)
            assert len(caplog.records) == 1
    for path in files:
        path.unlink()
        assert not is_intact(folder)
        cached_folder(folder, build)
    (folder / "stranger").touch()
    assert not is_intact(folder)
    cached_folder(folder, build)
    assert [path.name for path in folder.parent.iterdir()] == ["entry"]


def test_a_file_in_a_folders_place_is_replaced():
    folder = cache_dir("sets") / "entry"
    folder.write_text("not a folder")
    cached_folder(folder, fill)
    assert is_intact(folder)


def _compete(folder, start):
    start.wait()
    for number in range(20):
        Cache("kind").put_json(f"entry {number}", {"number": number})
        cached_folder(folder / f"{number % 5}", fill)


@pytest.mark.process
def test_processes_that_store_the_same_do_not_meet():
    folder = cache_dir("sets")
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    processes = [context.Process(target=_compete, args=(folder, start)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [Cache("kind").get_json(f"entry {number}") for number in range(20)] == [{"number": n} for n in range(20)]
    assert all(is_intact(folder / str(number)) for number in range(5))
    assert sorted(path.name for path in folder.iterdir()) == list("01234")
    assert len(list(cache_dir("kind").iterdir())) == 20


@pytest.mark.process
def test_what_killed_processes_left_is_removed():
    folder = cache_dir("sets")
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, host = int(process.stdout), host_name()
    (folder / f".entry-{host}-{dead}-00000001" / "new").mkdir(parents=True)
    (folder / f".entry-{host}-{dead}-00000002").touch()
    alive = folder / f".entry-{host}-{os.getppid()}-00000003"
    foreign = folder / f".entry-elsewhere-{dead}-00000004"
    alive.touch()
    foreign.touch()
    module._remove_leftovers.cache_clear()
    cache_dir("sets")
    assert set(folder.iterdir()) == {alive, foreign}


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "file"))
    Cache("kind").put("a", b"content")
    assert Cache("kind").get("a") == b"content"
    assert is_intact(cached_folder(cache_dir("sets") / "entry", fill))
    assert "cannot be made" in caplog.text
    assert (tmp_path / "file").read_bytes() == b""


def test_a_full_disk_is_done_without(monkeypatch, caplog):
    store, folder = Cache("kind"), cache_dir("sets")

    def full(descriptor):
        if "cache" in os.readlink(f"/proc/self/fd/{descriptor}").split("/")[-3:]:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store.put("a", b"content")
    store.put("b", b"content")
    assert store.get("a") is None
    assert list(store.path("a").parent.iterdir()) == []
    assert [record.message for record in caplog.records if "kind" in record.message] == [
        "cache: the cache of kind kind cannot be written ([Errno 28] No space left on device); "
        "the work goes on without it"
    ]
    elsewhere = cached_folder(folder / "entry", lambda target: _fill_until_full(target, folder))
    assert not elsewhere.is_relative_to(folder)
    assert is_intact(elsewhere)
    assert list(folder.iterdir()) == []


def _fill_until_full(target, folder):
    if target.is_relative_to(folder):
        raise OSError(28, "No space left on device")
    fill(target)


def test_no_disk_at_all_is_an_error():
    def full(target):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="free some space"):
        cached_folder(cache_dir("sets") / "never", full)


def test_errors_of_the_work_are_its_own():
    def fails(target):
        target.mkdir()
        raise FileNotFoundError(2, "no rows")

    with pytest.raises(FileNotFoundError):
        cached_folder(cache_dir("sets") / "entry", fails)
    assert list(cache_dir("sets").iterdir()) == []


@pytest.mark.parametrize(("umask", "of_file", "of_folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_permissions_follow_the_umask(umask, of_file, of_folder):
    before = os.umask(umask)
    try:
        Cache("kind").put("a", b"content")
        folder = cached_folder(cache_dir("sets") / "entry", fill)
    finally:
        os.umask(before)
    found = {path.stat().st_mode & 0o777 for path in [Cache("kind").path("a"), *folder.rglob("*")] if path.is_file()}
    assert found == {of_file}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "part")} == {of_folder}


def test_sealing_is_of_every_file(tmp_path):
    fill(tmp_path / "set")
    seal(tmp_path / "set")
    assert is_intact(tmp_path / "set")
    (tmp_path / "set" / "part" / "numbers").write_bytes(bytes(256))
    assert not is_intact(tmp_path / "set")
