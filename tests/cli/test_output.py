"""Output that cannot be written as it is: half characters, terminals of ASCII, and readers that leave."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallr.cli import main
from smallr.sampling.files import write_results, write_texts
from smallr.sampling.requests import Request, Result, Sample, Usage

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_text_that_the_output_cannot_hold_is_escaped(encoding):
    requests = [Request(prompt="cut \ud83d"), Request(prompt="é🙂")]
    results = [Result((), Usage(), error="é \ud83d"), Result((Sample("✓ é", "stop", (1,)),), Usage())]
    for write in (write_texts, write_results):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        write(requests, results, out)
        out.seek(0)
        text = out.read()
        assert "\\ud83d" in text
        assert "é" in text.replace("\\xe9", "é").replace("\\u00e9", "é")


def test_commands_print_what_a_terminal_cannot_show(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(main, "run", lambda *_: print("é \ud83d") or 0)
    assert main.main(["generate"]) == 0
    out.seek(0)
    assert out.read() == "\\xe9 \\ud83d\n"


@pytest.mark.process
def test_a_reader_that_leaves_ends_a_command_without_a_trace():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "smallr", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
