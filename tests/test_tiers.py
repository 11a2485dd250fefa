"""Tests that start processes or need a reference library are marked so, read from the source: `make test-fast` stays fast."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LIBRARIES = {"parity": {"torch", "peft", "trl"}, "process": {"subprocess", "multiprocessing"}}
RUNNERS = {"run", "command"}  # of tests.runs: they start processes
FIXTURES = {"eight_devices": {"process"}, "forks": {"process"}}  # of tests/conftest.py


def _imported(node: ast.Import | ast.ImportFrom) -> list[tuple[str, str, str]]:
    """(name in the module, module, name there) of an import."""
    if isinstance(node, ast.Import):
        return [((a.asname or a.name).split(".")[0], a.name, "") for a in node.names]
    return [(a.asname or a.name, node.module or "", a.name) for a in node.names]


def _file(module: str) -> Path:
    return TESTS.parent / (module.replace(".", "/") + ".py")


def _marks_of_import(module: str, name: str) -> set[str]:
    marks = {mark for mark, libraries in LIBRARIES.items() if module.split(".")[0] in libraries}
    if module == "tests.runs":
        return {"process"} if name in RUNNERS else set()
    if module.startswith("tests.") and _file(module).exists():
        marks |= reached(_file(module)).get(name, set())
    return marks


@functools.cache
def reached(path: Path) -> dict[str, set[str]]:
    """The marks that each function, class and imported name of a module asks for, through the names it uses."""
    body = ast.parse(path.read_text()).body
    marks: dict[str, set[str]] = {name: set(asked) for name, asked in FIXTURES.items()}
    uses: dict[str, set[str]] = {}
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name, module, there in _imported(node):
                marks[name] = _marks_of_import(module, there)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
            names |= {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}
            inner = [n for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom))]
            marks[node.name] = {
                m for n in inner for _, module, there in _imported(n) for m in _marks_of_import(module, there)
            }
            uses[node.name] = names
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
            skip = isinstance(value, ast.Call) and getattr(value.func, "attr", "") == "importorskip"
            library = value.args[0].value if skip else ""
            marks[name] = {mark for mark, libraries in LIBRARIES.items() if library in libraries}
            uses[name] = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)}
    changed = True
    while changed:
        changed = False
        for name, used in uses.items():
            more = set().union(*(marks.get(other, set()) for other in used if other != name))
            changed |= not more <= marks[name]
            marks[name] |= more
    return marks


def _named_marks(nodes: list[ast.expr]) -> set[str]:
    found = [n for node in nodes for n in ast.walk(node) if isinstance(n, ast.Attribute)]
    return {n.attr for n in found if isinstance(n.value, ast.Attribute) and n.value.attr == "mark"}


def missing(path: Path) -> list[tuple[str, int, set[str]]]:
    """(test, line, marks) of the tests that lack a mark."""
    found, whole = [], set()
    body = ast.parse(path.read_text()).body
    for node in body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "pytestmark":
            whole = _named_marks([node.value])
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            lacking = reached(path)[node.name] - whole - _named_marks(node.decorator_list)
            if lacking:
                found.append((node.name, node.lineno, lacking))
    return found


@pytest.mark.parametrize("folder", sorted(path.name for path in TESTS.iterdir() if (path / "__init__.py").exists()))
def test_tests_have_the_marks_of_what_they_use(folder):
    lacking = {path.name: missing(path) for path in (TESTS / folder).rglob("test_*.py")}
    assert {name: tests for name, tests in lacking.items() if tests} == {}


def test_a_missing_mark_is_found(tmp_path):
    path = tmp_path / "test_x.py"
    path.write_text(
        "import subprocess\nimport pytest\ntorch = pytest.importorskip('torch')\n\n"
        "def start():\n    subprocess.run([])\n\n@pytest.fixture\ndef served():\n    start()\n\n"
        "def test_a(served):\n    pass\n\n@pytest.mark.process\ndef test_b(served):\n    torch.zeros(1)\n\n"
        "def test_c():\n    pass\n"
    )
    assert [(name, marks) for name, _, marks in missing(path)] == [("test_a", {"process"}), ("test_b", {"parity"})]
