"""The arithmetic of the tables of comparisons, and their files."""

from __future__ import annotations

import csv
import math

import pytest

from smallr.core.comparison import bars, curves, difference, groups, markdown, mean, table, write_csv


def test_intervals_are_students():
    # s = 1, n = 3: t(0.975, 2) = 4.302653, divided by sqrt(3).
    found = mean([1.0, 2.0, 3.0])
    assert (found.value, found.count) == (2.0, 3)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert mean([0.25, math.nan]).show(2) == "0.25"
    assert mean([]).show() == "–"
    assert found.show(1) == "2.0 ± 2.5"


def test_differences_are_paired_over_seeds():
    # Seeds differ by far more than the arms do: paired, the difference is sure.
    rows = [{"seed": seed, "arm": arm, "x": 10.0 * seed + arm} for seed in range(3) for arm in (0, 1)]
    by_arm = groups(rows, ["arm"])
    found = difference(by_arm[(1,)], [*by_arm[(0,)][:2], {"seed": 9, "x": 5.0}], "x")
    assert (found.value, found.half, found.count) == (1.0, 0.0, 2)
    assert found.show(2, signed=True) == "+1.00 ± 0.00"


def test_files(tmp_path):
    rows = [{"arm": "a", "seed": 0, "x": 1.0}, {"arm": "a", "seed": 1, "x": 3.0}, {"arm": "b|c", "seed": 0, "y": 2.0}]
    write_csv(rows, tmp_path / "runs.csv")
    read = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert [row["x"] for row in read] == ["1.0", "3.0", ""]
    text = table(rows, ["arm"], {"x": "ex"}, digits=1)
    assert text.splitlines()[0] == "| arm | runs | ex |"
    assert text.splitlines()[2:] == ["| a | 2 | 2.0 ± 12.7 |", r"| b\|c | 1 | – |"]
    assert markdown(["h"], [["c"]]) == "| h |\n| --- |\n| c |\n"

    pytest.importorskip("matplotlib", reason="plots need the extra `experiments`")
    bars(rows, "arm", {"x": "ex"}, tmp_path / "bars.png")
    curves({"panel": (rows, "seed")}, {"x": "ex", "y": "why"}, tmp_path / "curves.png", note="note")
    for name in ("bars.png", "curves.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
