"""The dependency rule of docs/architecture.md, read from the imports of the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "smallr"
# A package imports itself and those before it in this list.
ORDER = ("core", "data", "models", "losses", "training", "sampling", "language", "evals", "agents", "methods")
ABOVE = (
    "cli",
    "api",
    "reporting",
    "doctor",
    "review",
    "train",
    "__main__",
    "config",
    "__init__",
)  # what uses packages, and none of them uses


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line, dotted name) of every import of smallr in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{path}:{node.lineno} is a relative import, which this test cannot place")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "smallr":
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "smallr")


def violations(package: str, path: Path) -> list[str]:
    """Imports of a file in `package` that point up, or from one method to another."""
    found = []
    for line, name in imports_of(path):
        parts = name.split(".")
        target = parts[1] if len(parts) > 1 else "__init__"
        # The tree of fields and their meanings, and constants of the package, which all may read.
        if target in ("config", "__version__", "IMPORTED_AT"):
            continue
        if target not in ORDER or ORDER.index(target) > ORDER.index(package):
            found.append(f"{path.relative_to(PACKAGE.parent)}:{line} imports {name}")
        elif package == target == "methods" and parts[2] != path.relative_to(PACKAGE / "methods").parts[0]:
            found.append(f"{path.relative_to(PACKAGE.parent)}:{line} imports another method, {name}")
    return found


@pytest.mark.parametrize("package", ORDER)
def test_a_package_imports_only_what_stands_before_it(package):
    files = sorted((PACKAGE / package).rglob("*.py"))
    assert files or package == "agents"
    assert not [line for path in files for line in violations(package, path)]


def test_every_package_has_its_place():
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found <= {*ORDER, *ABOVE}


def test_a_violation_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path / "smallr")
    for name, text in {
        "models/decoder.py": "def f():\n    from smallr.training.trainer import Trainer\n",
        "methods/crv/pairs.py": "import smallr.methods.collate\nfrom smallr.methods.crv import rows\n",
    }.items():
        path = tmp_path / "smallr" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert violations("models", tmp_path / "smallr/models/decoder.py") == [
        "smallr/models/decoder.py:2 imports smallr.training.trainer.Trainer"
    ]
    assert violations("methods", tmp_path / "smallr/methods/crv/pairs.py") == [
        "smallr/methods/crv/pairs.py:1 imports another method, smallr.methods.collate"
    ]
