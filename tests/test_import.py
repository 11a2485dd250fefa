"""`import smallr` is light, and what it offers is there when it is asked for."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import smallr

ROOT = Path(__file__).parents[1]
HEAVY = ("jax", "numpy", "transformers", "datasets", "flax", "ml_collections", "torch", "asyncio")


@pytest.mark.process
def test_import_loads_nothing_heavy_and_dir_and_all_neither():
    program = f"""
import sys
import smallr
assert set(smallr.__all__) <= set(dir(smallr))
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
smallr.UserError, smallr.register_loss, smallr.Field
loaded = [name for name in ("jax", "numpy", "transformers", "datasets") if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_names_are_there_and_no_others():
    for name in smallr.__all__:
        assert getattr(smallr, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = smallr.lod
    assert (ROOT / "smallr" / "py.typed").is_file()


def test_type_checkers_see_the_same_names():
    tree = ast.parse((ROOT / "smallr" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"smallr.{module}" for name, module in smallr._HOME.items()}
    assert sorted(seen) == smallr.__all__


@pytest.mark.process
@pytest.mark.parametrize("package", ["smallr", "benchmarks", ""])
def test_the_line_about_pytorch_is_printed_nowhere(package):
    """transformers says at its import that PyTorch is missing, unless one of our packages was imported before."""
    program = f'import sys; sys.modules["torch"] = None; {f"import {package}; " * bool(package)}import transformers'
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_NO_ADVISORY_WARNINGS"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert ("PyTorch was not found" in done.stderr + done.stdout) == (not package)


def test_no_experiment_imports_transformers_before_smallr():
    for path in (ROOT / "experiments").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "transformers" for name in names), path
