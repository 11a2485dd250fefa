"""The notebook runs from top to bottom, its code cells one after the other in one process, and writes what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "colab" / "cogpo_quickstart.ipynb"


def cells(kind):
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_cells_are_plain_python_without_outputs():
    for cell in cells("code"):
        source = "".join(cell["source"])
        compile(source, "cell", "exec")  # no magics: what the tests run is what a runtime runs
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert [cell["metadata"].get("tags") for cell in cells("code")][:2] == [["install"], ["parameters"]]


def test_files_that_it_names_exist():
    text = "".join("".join(cell["source"]) for cell in cells("markdown"))
    named = re.findall(r"(?:docs|configs)/[\w/]+\.(?:md|py)", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.slow
def test_runs_from_top_to_bottom(tmp_path):
    pytest.importorskip("matplotlib", reason="curves need the extra `experiments`")
    marked = [f"print('[cell {i}]', flush=True)\n{''.join(cell['source'])}" for i, cell in enumerate(cells("code"))]
    settings = {"SMALLR_TINY": "1", "SMALLR_OUT": str(tmp_path), "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(marked)],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.findall(r"\[cell (\d+)\]", done.stdout) == [str(i) for i in range(len(marked))]
    for part in ("easy", "hard"):
        assert f"--- the critic says {part}" in done.stdout
    for gap in ("small", "medium", "large"):
        assert re.search(rf"{gap} +held-out accuracy [01]\.\d\d, margin [+-]\d", done.stdout)
    for name in ("before", "after SFT", "after CogPO"):
        assert f"--- {name}\n" in done.stdout
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "student" / "model.safetensors").exists()
    report = json.loads((tmp_path / "cogpo" / "report.json").read_text())
    assert (report["finished"], report["steps"], report["model"]) == (True, 3, str(tmp_path / "student"))
