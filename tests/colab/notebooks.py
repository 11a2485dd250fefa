"""Notebooks as programs: their cells, and all of them one after the other in one process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NARROW = "from tests.compiling import compile_as_tests_do\ncompile_as_tests_do()"  # compiles faster
NOTEBOOKS = sorted(path.name for path in (ROOT / "colab").glob("*.ipynb"))
INSTALL = (ROOT / "colab" / "install_cell.py").read_text().rstrip("\n")  # the first cell of every notebook


def cells(name: str, kind: str = "code") -> list[dict[str, Any]]:
    """Cells of a kind of a notebook in `colab/`."""
    notebook = json.loads((ROOT / "colab" / name).read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def check_plain(name: str) -> None:
    """No magics, so that what the tests run is what a runtime runs; no outputs; the tagged cells first."""
    for cell in cells(name):
        compile("".join(cell["source"]), "cell", "exec")
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert [cell["metadata"].get("tags") for cell in cells(name)][:2] == [["install"], ["parameters"]]


def run_whole(name: str, out: Path, python: str = sys.executable, folder: Path = ROOT, **variables: str) -> str:
    """Runs all code cells by a Python in a folder, in their small setting, with results in `out`; what was printed.

    `variables` are added to the environment.
    """
    marked = [f"print('[cell {i}]', flush=True)\n{''.join(cell['source'])}" for i, cell in enumerate(cells(name))]
    settings = {"SMALLR_TINY": "1", "SMALLR_OUT": str(out), "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [python, "-c", "\n".join([NARROW, *marked] if folder == ROOT else marked)],
        cwd=folder,
        env={**os.environ, **settings, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=900 if python == sys.executable else 2400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.findall(r"\[cell (\d+)\]", done.stdout) == [str(i) for i in range(len(marked))]
    return done.stdout
