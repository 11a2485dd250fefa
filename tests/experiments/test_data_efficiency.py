"""The experiment on data efficiency: its runs, what is read off its curve, and all of it once with a tiny model."""

from __future__ import annotations

import dataclasses
import math

import pytest
from datasets import load_from_disk
from tokenizers import Tokenizer

from experiments.crv.ablation import Worker
from experiments.crv.arms import CRV, RAW, TrainSettings
from experiments.crv.base import Base
from experiments.crv.data_efficiency import Shares, equivalent, write_report
from experiments.crv.rows import Recipe
from smallr.core.errors import UserError
from smallr.core.stages import Stages
from smallr.models.scratch import Size
from tests.experiments.test_cogpo_ablation import load, plan, student  # noqa: F401


def test_shares_are_numbers_of_rows():
    wanted = Shares(plan(), (1, 0.1, 0.5, 0.5), 2)
    assert wanted.counts() == [2, 12, 24]
    runs = wanted.runs()
    assert list(runs) == [(arm, count) for count in (2, 12, 24) for arm in (RAW, CRV)]
    assert [run.settings["rows"]["train"] for run in runs[CRV, 12]] == [12, 12]
    assert len({run.digest for members in runs.values() for run in members}) == 12
    with pytest.raises(UserError, match="above 0 and at most 1"):
        Shares(plan(), (0.5, 1.5), 1)


def test_a_curve_is_read_off_in_the_log_of_the_rows():
    counts, curve = [100, 400, 1600], [0.2, 0.4, 0.8]
    assert equivalent(counts, curve, 0.3) == "200"
    assert equivalent(counts, curve, 0.6) == "800"
    assert equivalent(counts, curve, 0.4) == "400"
    assert equivalent(counts, curve, 0.1) == "100 or fewer"
    assert equivalent(counts, curve, 0.9) == "more than 1600"
    assert equivalent(counts, [0.2, math.nan, 0.4], 0.3) == "400"
    assert equivalent(counts, [math.nan] * 3, 0.3) == "–"


def test_what_is_taught_later_is_in_the_vocabulary_alone(tmp_path):
    known = Base(
        Size("llama", 1, 8, 1, 64), 600, 20, 2, 2, ("change",), 100, TrainSettings(0, 1, 1e-3, 1, 64), "float32"
    )
    pieces = {}
    for name, wanted in (("without", known), ("with", dataclasses.replace(known, taught_later=("bakery",)))):
        model, rows = wanted.write(tmp_path / name)
        texts = " ".join(row["prompt"] + row["completion"] for row in load_from_disk(rows)["train"])
        assert "dollars" in texts
        assert "trays" not in texts
        pieces[name] = len(Tokenizer.from_file(str(model / "tokenizer.json")).encode(" trays").ids)
    assert pieces["with"] == 1 < pieces["without"]


@pytest.mark.slow
def test_the_whole_experiment_with_a_tiny_model(tmp_path, student):  # noqa: F811
    pytest.importorskip("matplotlib", reason="the plot needs the extra `experiments`")
    wanted, grid = Shares(plan(str(student[1])), (1,), 1), Stages(tmp_path)
    runs = [run for members in wanted.runs().values() for run in members]
    assert write_report(grid, wanted, tmp_path) == "nothing is finished yet"
    grid.run(runs, Worker(tmp_path, str(student[1])))
    page = write_report(grid, wanted, tmp_path)
    assert "2 of 2 runs finished" in page
    assert f"| 24 | {RAW} | 1 |" in page
    assert f"| 24 | {CRV} | 1 |" in page
    assert (tmp_path / "data_efficiency.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_rows_of_a_smaller_share_are_among_those_of_a_larger_one(tmp_path):
    rows = {key: value for key, value in plan().rows.items() if key not in ("mix", "pairs")}
    small, whole = (
        load(Recipe(**{**rows, "seed": 0, "train": count}).build(tmp_path), "teacher") for count in (12, 24)
    )
    assert {row["prompt"] for row in small} < {row["prompt"] for row in whole}
