"""Journals: cut off, damaged in every way, and written to a full disk."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from smallr.core import journal as module
from smallr.core.errors import UserError
from smallr.core.journal import Journal


@pytest.fixture
def path(tmp_path):
    """A journal of five pieces."""
    journal = Journal(tmp_path / "journal.jsonl")
    for number in range(5):
        journal.add(f"piece {number}", {"row": {"x": number, "text": "ü\ud83d\u2028\n", "y": 0.1}})
    return journal.path


def test_pieces_are_read_as_they_were_added(path):
    journal = Journal(path, ("row",))
    assert len(journal) == 5
    assert "piece 3" in journal
    assert journal["piece 3"] == {"row": {"x": 3, "text": "ü\ud83d\u2028\n", "y": 0.1}}
    journal.add("piece 3", {"row": {}, "more": (1, 2)})
    assert Journal(path)["piece 3"] == journal["piece 3"] == {"row": {}, "more": [1, 2]}
    assert list(Journal(path).entries()) == [f"piece {number}" for number in range(5)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: journal.add(str(number), {"row": number}), range(100)))
    assert len(Journal(path)) == 105


@pytest.mark.parametrize("cut", [1, 2, 40, 60])
def test_a_line_that_a_kill_has_cut_off_is_removed(cut, path):
    whole = path.read_bytes()
    last = len(whole) - len(whole.splitlines(keepends=True)[-1])
    path.write_bytes(whole[:-cut])
    journal = Journal(path)
    assert len(journal) == 4
    assert path.read_bytes() == whole[:last]
    journal.add("piece 4", {"row": {"x": 4, "text": "ü\ud83d\u2028\n", "y": 0.1}})
    assert path.read_bytes() == whole


def changed(lines: list[bytes], number: int, line: bytes) -> bytes:
    return b"\n".join([*lines[: number - 1], line, *lines[number:]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: changed(lines, 3, lines[2][:20]), "line 3: damaged (it is no entry with a checksum)"),
        (lambda lines: changed(lines, 3, lines[2][:50]), "line 3: damaged (its checksum does not fit)"),
        (lambda lines: changed(lines, 2, lines[1].replace(b'"x": 1', b'"x": 7')), "line 2: damaged (its checksum"),
        (lambda lines: changed(lines, 4, b"\xff\xfe" + lines[3]), "line 4: damaged (it is not UTF-8)"),
        (lambda lines: changed(lines, 4, b"\0" * 4096), "line 4: damaged"),
        (lambda lines: changed(lines, 1, b'{"key": []}'), "line 1: damaged"),
        (lambda lines: changed(lines, 5, b"7"), "line 5: damaged"),
        (lambda lines: changed(lines, 2, b""), "line 2: damaged"),
        (lambda lines: changed(lines, 2, with_checksum('{"key": [], "entry": {}}')), "line 2: damaged (it is no entry)"),
        (lambda lines: changed(lines, 2, with_checksum('{"key": "a", "entry": {}}')), "line 2: damaged (it lacks 'row')"),
    ],
)  # fmt: skip
def test_other_damage_is_an_error_that_names_the_line_and_changes_nothing(damage, message, path):
    path.write_bytes(damage(path.read_bytes().split(b"\n")))
    before = path.read_bytes()
    with pytest.raises(UserError) as error:
        Journal(path, ("row",))
    assert message in str(error.value)
    assert "delete the line, and what it held is done again" in str(error.value)
    assert path.read_bytes() == before


def with_checksum(body: str) -> bytes:
    return f'{{"check": "{module._digest(body)}", {body[1:]}'.encode()


def test_a_folder_in_its_place_is_named(tmp_path):
    with pytest.raises(UserError, match="is a folder where a file should be"):
        Journal(tmp_path)


def test_a_full_disk_leaves_no_half_line(path, monkeypatch):
    journal, before = Journal(path), path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(UserError, match=r"journal\.jsonl cannot be written: .*No space left"):
            journal.add("piece 5", {"row": 5})
    assert path.read_bytes() == before
    assert "piece 5" not in journal
    journal.add("piece 5", {"row": 5})
    assert json.loads(path.read_text().splitlines()[-1])["entry"] == {"row": 5}
    assert len(Journal(path)) == 6
    first = Journal(path.with_name("first.jsonl"))  # the same of a file that was made with the line
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(UserError, match="cannot be written"):
            first.add("piece", {"row": 1})
    first.add("other", {"row": 2})
    assert list(Journal(first.path).entries()) == ["other"]
