"""Rows that go to a file while they are read are the rows that stay in memory."""

from __future__ import annotations

import json

import datasets

from smallr.data import tables
from smallr.data.tables import read_table

ROWS = [
    {
        "text": f"é {i}",
        "number": i if i < 6 else f"n{i}",  # becomes text in a later chunk
        "float": i if i % 2 else i + 0.5,
        "list": [i, 2],
        "chat": [{"role": "user", "content": str(i)}] if i % 3 else None,
        **({"late": True} if i > 8 else {}),
    }
    for i in range(12)
]


def test_rows_on_the_disk_are_those_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))
    in_memory = read_table([str(path)], "rows")
    monkeypatch.setattr(tables, "_CHUNK", 2)
    monkeypatch.setattr(tables, "_SPILL", 100)
    on_disk = read_table([str(path)], "rows")
    assert on_disk.features == in_memory.features
    assert on_disk[:] == in_memory[:]
    assert in_memory["number"][:7] == ["0", "1", "2", "3", "4", "5", "n6"]
    assert list((tmp_path / "cache" / "rows").iterdir()) == []  # gone with the process, whatever ends it
    assert on_disk.select([11, 0])["text"][:] == ["é 11", "é 0"]
    on_disk.save_to_disk(tmp_path / "saved")
    assert datasets.load_from_disk(tmp_path / "saved")[:] == in_memory[:]


def test_a_disk_that_cannot_be_written_costs_memory_only(tmp_path, monkeypatch, caplog):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    monkeypatch.setattr(tables, "_SPILL", 1)
    monkeypatch.setattr(tables.pa, "OSFile", lambda *args: _full())
    assert read_table([str(path)], "rows")["text"][11] == "é 11"
    assert "stay in memory" in caplog.text


def _full():
    raise OSError("no space left on device")
