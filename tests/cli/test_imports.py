"""What a command imports before it works: counted, since seconds depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from smallr.cli.main import COMMANDS
from tests.runs import ROOT

LIGHT = 300  # modules of a command's, with which flags are read and most mistakes are found
NEVER = ("torch", "matplotlib", "sklearn", "sympy", "openai", "fastapi", "scipy", "peft", "trl")
# What trains, and what writes: at most so many modules, and none of these packages.
WRITES_WITHOUT = ("datasets", "pandas", "pyarrow", "orbax", "transformers")
WORK = {
    "smallr.training.trainer": (2550, (*NEVER, "transformers")),
    "smallr.language.loading": (1320, (*NEVER, *WRITES_WITHOUT)),
    "smallr.sampling.files": (300, (*NEVER, *WRITES_WITHOUT, "jax")),
}
JAX = ("jax", "flax", "transformers", "datasets", "numpy")
# Each module is imported by a fork, so that Python starts once.
PROGRAM = """
import importlib, json, os, sys
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        importlib.import_module(name)
        loaded = {each.partition(".")[0] for each in sys.modules}
        print(json.dumps([name, len(sys.modules), sorted(loaded)]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


@pytest.fixture(scope="module")
def imports() -> dict[str, tuple[int, set[str]]]:
    """Returns how many modules each module loads, and of which packages."""
    modules = [*dict.fromkeys(module for module, _ in COMMANDS.values()), *WORK]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *modules], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {name: (count, set(packages)) for name, count, packages in lines}


@pytest.mark.process
def test_a_command_loads_little_before_it_works(imports):
    for module, _ in COMMANDS.values():
        count, packages = imports[module]
        assert count <= LIGHT, module
        assert not packages & {*JAX, *NEVER}, module


@pytest.mark.process
@pytest.mark.parametrize("module", WORK)
def test_training_and_writing_load_no_package_that_they_do_not_need(imports, module):
    (count, packages), (most, never) = imports[module], WORK[module]
    assert count <= most
    assert {"jax", "flax"} <= packages or "jax" in never
    assert not packages & {*never}
