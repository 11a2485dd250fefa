"""What the comparison of objectives writes, and the pairs it may be run on."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from experiments.gsm8k_pairs import SYSTEMS, clean, pairs
from experiments.objectives import METRICS, table, write
from smallr.core.comparison import say_if_no_plots


def result(name, seed, accuracy):
    return {"objective": name, "seed": seed, **dict.fromkeys(METRICS, 1.0), "accuracy": accuracy}


def test_table_has_mean_and_deviation_over_seeds_best_first():
    rows = table([result("a", 0, 0.5), result("b", 0, 0.9), result("a", 1, 0.7)])
    assert [row["objective"] for row in rows] == ["b", "a"]
    assert rows[1]["accuracy"] == pytest.approx(0.6)
    assert rows[1]["accuracy_sd"] == pytest.approx(0.02**0.5)
    assert rows[1]["seeds"] == 2


def test_files_are_written(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need the extra `experiments`")
    write(table([result("a", 0, 0.5), result("b", 0, 0.9)]), {"model": "m"}, tmp_path)
    assert [row["objective"] for row in csv.DictReader((tmp_path / "table.csv").open())] == ["b", "a"]
    assert "| b | 1 | 0.900 |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_there_is_a_table_and_no_plot(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    say_if_no_plots()
    assert "pip install matplotlib" in capsys.readouterr().out
    write(table([result("a", 0, 0.5)]), {"model": "m"}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv", "table.md"}


def test_gsm8k_pairs_need_a_right_and_a_wrong_solution():
    def row(question, correct):
        return {
            "question": question,
            **{s: {"is_correct": c, "solution": f"{s} 2*3=<<2*3=6>>6"} for s, c in zip(SYSTEMS, correct, strict=True)},
        }

    rows = [row("all right", [1, 1, 1, 1]), row("both", [0, 1, 0, 0]), row("all wrong", [0, 0, 0, 0])]
    (pair,) = pairs(json.loads(json.dumps(rows)))
    assert (pair["prompt"], pair["problem"]) == ("both", 1)
    assert pair["chosen"] == "6b_verification 2*3=6"
    assert pair["rejected"].startswith(("6b_finetuning", "175b"))
    assert clean(" 1+1=<<1+1=2>>2 ") == "1+1=2"
