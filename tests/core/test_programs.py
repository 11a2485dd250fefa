"""Compiled programs on disk: a damaged one is compiled again, and gives the same numbers."""

import os
import random
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process

PROGRAM = """
import jax, jax.numpy as jnp
from smallr.core.programs import keep_programs
keep_programs(0.0)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name.rpartition("/")[2]))
values = jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.arange(64.0).reshape(8, 8))
print(float(values).hex(), events.count("cache_hits"), events.count("cache_misses"))
"""


def run(folder) -> tuple[list[str], str]:
    """The numbers, hits and misses of a process, and its warnings."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder), "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split(), done.stderr


def damaged(content: bytes, number: int) -> bytes:
    """A flip, a zeroed stretch or a truncation."""
    place = random.Random(number).randrange(len(content) - 40)
    return [
        content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :],
        content[:place] + bytes(40) + content[place + 40 :],
        content[:place],
    ][number % 3]


def test_damaged_programs_are_compiled_again(tmp_path):
    (value, hits, misses), _ = run(tmp_path)
    files = sorted((tmp_path / "sealed").glob("*-cache"))
    assert (hits, int(misses), len(files) >= 3) == ("0", len(files), True)
    for number, path in enumerate(files):
        path.write_bytes(damaged(path.read_bytes(), number))
    found, warnings = run(tmp_path)
    assert found == [value, "0", misses]
    assert warnings.count("is damaged") == len(files)
    found, warnings = run(tmp_path)
    assert found == [value, misses, "0"]
    assert "damaged" not in warnings


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path):
    (tmp_path / "sealed").touch()
    (_, hits, _), warnings = run(tmp_path)
    assert hits == "0"
    assert warnings.count("cannot be kept") == 1
