"""A wheel of the project holds the configs and the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from smallr.cli import config_files
from tests.runs import ROOT

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder in which the wheel, and nothing else, is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skipped = shutil.ignore_patterns(".*", "runs", "shared", "tests", "docs", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skipped)  # building leaves files behind
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", source], check=True)
    (wheel,) = folder.glob("smallr-*.whl")
    subprocess.run([*pip, "install", "--no-deps", f"--target={folder / 'site'}", wheel], check=True)
    return folder / "site"


@pytest.mark.slow
def test_the_command_runs_outside_of_the_project(installed, tmp_path):
    script = installed / "bin" / "smallr"
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def call(*argv: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(script), *argv]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    listed = call("configs")
    assert listed.returncode == 0, listed.stderr
    assert all(f"  {name} " in listed.stdout for name in config_files.names())
    shown = call("train", "cogpo", "--help")
    assert "optimizer.learning_rate=1e-05" in shown.stdout
    assert call("train", "cogpo", "--config.lr=1").returncode == 1
    where = "import smallr, smallr.configs.crv.annotate; print(smallr.__file__)"
    done = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip().startswith(str(installed)), done.stderr
