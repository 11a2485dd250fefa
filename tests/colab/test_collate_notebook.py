"""The notebook on COLLATE runs from top to bottom: rows, all stages, the choice, a question to the run's folder."""

from __future__ import annotations

import json
import re

import pytest

from tests.colab.notebooks import check_plain, run_whole
from tests.compiling import OPTIMISED_ENVIRONMENT

NOTEBOOK = "collate.ipynb"


def test_cells_are_plain_python_without_outputs():
    check_plain(NOTEBOOK)


@pytest.mark.notebook
@pytest.mark.process
@pytest.mark.slow
def test_runs_from_top_to_bottom(tmp_path):
    printed = run_whole(NOTEBOOK, tmp_path, **OPTIMISED_ENVIRONMENT)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["stages"]["pairs_0"]["kept"] > 0
    right = {(each["model"], each["mode"]): each["accuracy"] for each in report["accuracy"]}
    assert right["M_IFT", "I→R→A"] >= 0.6  # it has learned to add
    assert right[f"provider {report['choice']['chosen']}", "I→R→A"] >= 0.6
    assert "sums that it has never seen" in printed
    assert f"provider {report['choice']['chosen']}: mean utility" in printed
    assert re.search(r"M_IFT +I→R→A +[01]\.\d\d", printed)
    assert "Next" in (tmp_path / "run" / "report.md").read_text()
