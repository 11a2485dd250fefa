"""The notebook on planning runs from top to bottom on Chinook: one question, a small benchmark, a judge, the file as it was."""

from __future__ import annotations

import hashlib
import json
import re
import shutil

import pytest

from tests.colab.notebooks import ROOT, cells, check_plain, run_whole

NOTEBOOK = "planner.ipynb"
CHINOOK = ROOT.parent / "shared" / "data" / "text2sql" / "chinook" / "Chinook_Sqlite.sqlite"


def test_cells_are_plain_python_without_outputs():
    check_plain(NOTEBOOK)


def chinook():
    if not CHINOOK.exists():
        pytest.skip(f"needs {CHINOOK}")
    return CHINOOK


def test_the_database_that_it_fetches_is_the_one_that_is_tested():
    text = "".join("".join(cell["source"]) for cell in cells(NOTEBOOK))
    assert re.search(r'SHA256 = "(\w+)"', text)[1] == hashlib.sha256(chinook().read_bytes()).hexdigest()
    assert re.search(r"chinook-database/[0-9a-f]{40}/", text)  # one commit, not a branch


@pytest.mark.notebook
@pytest.mark.process
@pytest.mark.slow
def test_runs_from_top_to_bottom(tmp_path):
    database = shutil.copyfile(chinook(), tmp_path / "shop.sqlite")
    printed = run_whole(NOTEBOOK, tmp_path, SMALLR_DATABASE=str(database))
    assert "answer by vote: [[130]]" in printed
    assert re.search(r"refused|no query", printed)  # DROP TABLE
    assert f"unchanged: {database}" in printed
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["counts"]["questions"] == report["counts"]["judged_questions"] == 8
    assert report["unusable"] == []
    assert report["picks"]["rerank_oracle_1"]["ex"] > report["picks"]["rerank_oracle_0.5"]["ex"]
    assert report["picks"]["majority of proposals"]["ex"] > report["picks"]["first candidate"]["ex"]
    assert "joins" in (tmp_path / "run" / "gold.md").read_text() or not report["gold"]
