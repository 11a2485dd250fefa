"""A wheel of the project holds the configs and the command."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from smallr.cli import config_files
from tests.runs import ROOT

pytestmark = pytest.mark.process


PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    skipped = shutil.ignore_patterns(".*", "runs", "shared", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skipped)  # building leaves files behind
    program = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    (sdist,) = folder.glob("smallr-*.tar.gz")
    subprocess.run([*PIP, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", sdist], check=True)
    return folder


@pytest.fixture(scope="module")
def installed(built) -> Path:
    """A folder in which the wheel, and nothing else, is installed."""
    (wheel,) = built.glob("smallr-*.whl")
    subprocess.run([*PIP, "install", "--no-deps", f"--target={built / 'site'}", wheel], check=True)
    return built / "site"


def is_shipped(path: Path) -> bool:
    """Whether a file of the source belongs into the wheel."""
    return (
        path.suffix in (".py", ".txt", ".typed", ".json", ".jinja", ".html", ".css", ".js")
        and "__pycache__" not in path.parts
    )


@pytest.mark.slow
def test_the_wheel_and_the_sdist_hold_the_package_and_nothing_else(built):
    (wheel,), (sdist,) = built.glob("smallr-*.whl"), built.glob("smallr-*.tar.gz")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "smallr").rglob("*") if is_shipped(path)}
    expected |= {f"smallr/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.py")}
    assert files == expected
    with tarfile.open(sdist) as archive:
        packed = {Path(*Path(member.name).parts[1:]).as_posix() for member in archive if member.isfile()}
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "docs/api.md", "PKG-INFO"} <= packed
    top = {name.split("/")[0] for name in packed if "/" in name}
    assert top - {"smallr.egg-info"} <= {"smallr", "configs", "docs", "tests"}


@pytest.mark.slow
def test_the_metadata_of_the_wheel(built):
    (wheel,) = built.glob("smallr-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Author"] == "The smallr authors"
    assert metadata["License"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"Homepage", "Documentation"} <= {url.partition(",")[0] for url in metadata.get_all("Project-URL")}
    assert "Programming Language :: Python :: 3.12" in metadata.get_all("Classifier")
    assert any(line.startswith("jax>=") for line in metadata.get_all("Requires-Dist"))


def test_what_github_runs_is_there():
    """CI on GitHub calls .ci/run and a target of the Makefile."""
    import yaml

    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    commands = {each["python"]: each["command"] for each in job["strategy"]["matrix"]["include"]}
    assert commands == {"3.11": "bash .ci/run", "3.12": "make test-next"}
    assert "test-next: .venv-next/.installed" in (ROOT / "Makefile").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_a_next_python_that_is_not_there_is_one_line(tmp_path):
    make = shutil.which("make") or pytest.skip("needs make")
    (tmp_path / "empty").mkdir()
    for name in ("setup.py", "constraints-next.txt", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    environment = {"PATH": str(tmp_path / "empty"), "HOME": str(tmp_path)}
    shell = f"SHELL={shutil.which('sh')}"
    done = subprocess.run(
        [make, shell, ".venv-next/.installed"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "make test-next: needs Python 3.12 or newer" in done.stderr


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
