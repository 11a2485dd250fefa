"""The whole experiment on a handful of rows: students, modules, what they write, the report."""

from __future__ import annotations

import csv
import json

import jax
import pytest

from experiments.adaptive import report
from experiments.adaptive.answer_first import Experiment, Laboratory, runs_of
from experiments.adaptive.students import Recipe
from smallr.core.sharding import make_mesh
from smallr.core.stages import Stages

ACTS = "A coin is heads up. {} flips the coin. {} does not flip the coin. Is the coin still heads up?"


@pytest.fixture
def data(tmp_path):
    names = [f"N{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(40)]
    rows = [{"question": ACTS.format(a, b), "answer": "no"} for a, b in zip(names[::2], names[1::2], strict=True)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "coin_flip.json").write_text(json.dumps(rows))
    return tmp_path / "data"


@pytest.mark.slow
def test_every_arm_is_run_once_and_reported(tmp_path, data):
    recipe = Recipe("scratch", chat=False, steps=2, rows=2, row_length=128, max_tokens=8, decode_slots=4)
    experiment = Experiment({"coin_flip": 0}, 6, recipe, (1, 32, 2, 300), (0.0, 0.5), 1, 4, adaptive=(2, 2))
    runs, mesh = runs_of(experiment), make_mesh(1, -1, 1)
    assert [run.settings["arm"] for run in runs] == ["post", "pre", "both", "router", "prompts", "post", "pre"]
    grid = Stages(tmp_path / "out")
    with jax.set_mesh(mesh):
        laboratory = Laboratory(experiment, data, tmp_path / "out", mesh)
        grid.run(runs, laboratory)

        def never(run, folder, needs):
            raise AssertionError(f"{run.name} is run again")

        grid.run(runs, never)
    text = report.write(grid, runs, laboratory.test_rows, tmp_path / "out")
    for arm in (
        "pre",
        "post",
        "always-pre",
        "always-post",
        "adaptive: router",
        "adaptive: mode prompts",
        "router, its 25%",
        "oracle",
    ):
        assert f"| {arm}" in text, arm
    found = {row["run"]: row for row in csv.DictReader((tmp_path / "out" / "runs.csv").open())}
    assert len(found) == len(runs)
    asked = len(laboratory.test_rows)
    for name, row in found.items():
        if name.startswith(("pre", "post", "router", "prompts")):
            assert 0 <= float(row["accuracy"]) <= 1
            right = float(row["accuracy"]) * asked
            assert right == pytest.approx(round(right))
            assert 0 < float(row["tokens"]) <= (16 if name.startswith(("router", "prompts")) else 8), name
    assert float(found["post-0-0"]["tokens"]) <= float(found["post-0-0"]["tokens_without_stop"])
    for name in ("tokens.png", "tokens_both.png", "corruption.png", "report.md"):
        assert (tmp_path / "out" / name).stat().st_size > 100
