"""The benchmark of providers' memory makes runs that open as models, and counts what each way holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.provider_memory import child, make_providers
from smallr.training.saved import find_run

pytestmark = pytest.mark.slow

MODEL, RANK = "tiny-random", 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Three runs with adapters."""
    return make_providers(tmp_path_factory.mktemp("providers"), MODEL, RANK)


def told(capsys, way: str, runs: list[Path]) -> dict[str, float]:
    """What a way tells of the memory that it holds."""
    child(way, MODEL, RANK, runs)
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_providers_are_runs_with_adapters(runs):
    found = [find_run(run) for run in runs]
    assert [run.config["model"] for run in found] == [MODEL] * 3
    assert all("lora" in run.config for run in found)


def test_adapters_of_three_providers_are_three_times_those_of_one(runs, capsys):
    one, three = (told(capsys, f"adapters, S = {count}", runs) for count in (1, 3))
    assert one["kept"] > 0
    assert three["kept"] == pytest.approx(3 * one["kept"])


def test_whole_models_keep_no_adapters(runs, capsys):
    assert told(capsys, "whole models, S = 3", runs)["kept"] == 0
