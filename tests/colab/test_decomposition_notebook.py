"""The notebook on decomposition runs from top to bottom: the teacher's rows, students, their scores, a question."""

from __future__ import annotations

import re

import pytest

from tests.colab.notebooks import check_plain, run_whole

NOTEBOOK = "decomposition.ipynb"


def test_cells_are_plain_python_without_outputs():
    check_plain(NOTEBOOK)


@pytest.mark.notebook
@pytest.mark.process
@pytest.mark.slow
def test_runs_from_top_to_bottom(tmp_path):
    printed = run_whole(NOTEBOOK, tmp_path)
    assert re.search(r"60 sets, 0\.\d\d of them lead to the right answer", printed)
    for name in ("BC", "ILQL full"):
        assert re.search(rf"^{name} +sampled +accuracy [01]\.\d\d", printed, re.MULTILINE), name
    assert {path.name.split("-")[0] for path in (tmp_path / "run").iterdir()} >= {"bc", "ilql_full"}
