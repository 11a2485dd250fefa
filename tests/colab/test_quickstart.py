"""The notebook runs from top to bottom, its code cells one after the other in one process, and writes what it says."""

from __future__ import annotations

import json
import re

import pytest

from tests.colab.notebooks import ROOT, cells, check_plain, run_whole

NOTEBOOK = "cogpo_quickstart.ipynb"


def test_cells_are_plain_python_without_outputs():
    check_plain(NOTEBOOK)


def test_files_that_it_names_exist():
    text = "".join("".join(cell["source"]) for cell in cells(NOTEBOOK, "markdown"))
    named = re.findall(r"(?:docs|configs)/[\w/]+\.(?:md|py)", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.notebook
@pytest.mark.process
@pytest.mark.slow
def test_runs_from_top_to_bottom(tmp_path):
    pytest.importorskip("matplotlib", reason="curves need the extra `experiments`")
    printed = run_whole(NOTEBOOK, tmp_path)
    for part in ("easy", "hard"):
        assert f"--- the critic says {part}" in printed
    for gap in ("small", "medium", "large"):
        assert re.search(rf"{gap} +held-out accuracy [01]\.\d\d, margin [+-]\d", printed)
    for name in ("before", "after SFT", "after CogPO"):
        assert f"--- {name}\n" in printed
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "student" / "model.safetensors").exists()
    report = json.loads((tmp_path / "cogpo" / "report.json").read_text())
    assert (report["finished"], report["steps"], report["model"]) == (True, 3, str(tmp_path / "student"))
