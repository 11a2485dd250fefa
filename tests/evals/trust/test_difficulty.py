"""Difficulty: measures, bins, figures by bin, comparison by bin."""

from __future__ import annotations

import json

import numpy as np
import pytest

from smallr.cli.main import main
from smallr.core.errors import UserError
from smallr.evals import models
from smallr.evals.benchmarks import find
from smallr.evals.evaluation import evaluate
from smallr.evals.questions import load_items
from smallr.evals.store import read_samples
from smallr.evals.trust import difficulty
from smallr.evals.trust.by_difficulty import report
from smallr.evals.trust.difficulty import make_bins, steps
from tests.evals.fakes import FakeModel
from tests.evals.test_evaluation import add, gsm8k, write


def test_steps_are_sentences_and_lines_without_the_statement_of_the_answer():
    assert steps("First 1 + 2 = 3. Then 3 * 2 = 6.\nSo we have 6.\n#### 6") == 3
    assert steps("1.5 + 2 = 3.5, which is all. The answer is 3.5.") == 1
    assert steps("") == 0
    assert steps("a\n\n\nb") == 2


def test_levels_are_numbers_or_words():
    assert [difficulty.level(value) for value in ("Level 3", 5, "Hard", None)] == [3, 5, "hard", None]
    assert make_bins({"a": "hard", "b": "easy", "c": "medium"}, 2).names == ("easy", "medium", "hard")


def test_bins_hold_about_as_many_questions_and_never_part_equal_values():
    values = {str(i): float(value) for i, value in enumerate([1, 1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8])}
    bins = make_bins(values, 4)
    assert bins.names == ("1 … 2", "3 … 5", "6 … 8")
    assert [len(bins.members(index)) for index in range(3)] == [6, 3, 3]
    rng = np.random.default_rng(0)
    spread = make_bins({str(i): value for i, value in enumerate(rng.normal(size=403))}, 4)
    assert {len(spread.members(index)) for index in range(4)} <= {100, 101, 102}
    assert make_bins({"a": 5.0, "b": 1.0, "c": 2.0}, 2, each=True).names == ("1", "2", "5")
    assert make_bins({}, 3).names == ()


def test_bins_between_edges():
    bins = make_bins({"a": 0.0, "b": 3.0, "c": 5.9, "d": 10.0}, 4, (0, 3, 6, 10))
    assert bins.of == {"a": 0, "b": 1, "c": 1, "d": 2}
    assert bins.names == ("0 ≤ … < 3", "3 ≤ … < 6", "6 ≤ … ≤ 10")
    with pytest.raises(UserError, match=r"question 'x' has 11.0, beyond 0 to 10"):
        make_bins({"x": 11.0}, 4, (0, 3, 10))
    with pytest.raises(UserError, match="two numbers or more that rise"):
        make_bins({"x": 1.0}, 4, (3, 0))


def test_figures_of_bins_by_hand():
    values = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 2.0}
    records = [
        {"id": name, "sample": 0, "reason": "", "correct": right, "tokens": tokens}
        for name, right, tokens in (("a", True, 4), ("b", False, 8), ("c", False, 10), ("d", False, 12), ("e", True, 1))
    ]
    baseline = {"a": [0.0], "b": [0.0], "c": [1.0], "z": [1.0]}
    found = report(records, make_bins(values, 4), "steps", baseline=baseline, baseline_model="base")
    low, high = found["bins"]
    assert (low["bin"], low["questions"], low["accuracy"], low["tokens"]) == ("1", 2, 0.5, 6)
    assert low["tokens_half"] == pytest.approx(12.706 * 2, rel=1e-3)  # Student's t(1) times 8.**0.5 / 2**0.5
    assert low["gain"]["difference"] == 0.5
    assert (high["gain"]["questions"], high["gain"]["difference"]) == (1, -1)
    assert (found["unknown"], "bin" in records[4]) == (1, False)


def items_of(name, path, rows):
    return load_items(find(name), write(path, rows))[0]


def test_measures_that_rows_have(tmp_path):
    rows = [{"problem": f"{i}?", "answer": "1", "level": 1 + i % 5, "solution": "a. b."} for i in range(6)]
    maths = items_of("math500", tmp_path / "m.jsonl", rows)
    assert difficulty.available(maths, "grade") == ["nll", "steps", "level"]
    assert difficulty.measured("level", maths, "") == {str(i): 1.0 + i % 5 for i in range(6)}
    plain = items_of("svamp", tmp_path / "s.jsonl", [{"Body": "x", "Question": "y?", "Answer": 1, "grade": 4}])
    assert difficulty.measured("score", plain, "grade") == {"0": 4.0}
    assert difficulty.available(plain, "grade") == ["nll", "score"]
    with pytest.raises(UserError, match=r"svamp have no level; they have nll \(with config.difficulty.base\), score"):
        difficulty.check("level", plain, "svamp", "grade", "")
    with pytest.raises(UserError, match="have no gold rationale"):
        difficulty.check("steps", plain, "svamp", "grade", "")
    with pytest.raises(
        UserError, match=r"'levels' must be one of: nll, steps, level, score.*'level'.*the rows of svamp have nll"
    ):
        difficulty.check("levels", plain, "svamp", "grade", "")
    with pytest.raises(UserError, match=r"config.difficulty.base is empty"):
        difficulty.check("nll", plain, "svamp", "grade", "")


class Scorer:
    """Gives -2 nats for each character, a token each; what begins with 5 does not fit."""

    def loglikelihood(self, pairs):
        return [
            (float("nan") if context.startswith("What is 5") else -2.0 * len(text), False) for context, text in pairs
        ]

    def encode_pair(self, context, continuation):
        return list(context), list(continuation)


def test_the_nll_is_of_a_token(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(models, "open_scorer", lambda name, **_: opened.append(name) or Scorer())
    config = gsm8k(tmp_path, difficulty__measure="nll", difficulty__base="the base")
    found = evaluate(config, tmp_path / "out", model=FakeModel(add))["difficulty"]
    assert opened == ["the base"]
    assert found["unknown"] == 1
    assert [(each["bin"], each["questions"]) for each in found["bins"]] == [("2", 5)]


def test_an_evaluation_by_difficulty_and_the_gain_over_another(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the plot needs it")
    rows = [
        {"question": f"What is {i} + {i}?", "answer": f"{'It is. ' * (1 + i % 3)}\n#### {2 * i}"} for i in range(12)
    ]
    config = gsm8k(tmp_path)
    config.data = write(tmp_path / "rows.jsonl", rows)
    evaluate(config, tmp_path / "a", model=FakeModel(lambda _: "0"))
    config.model, config.difficulty.measure, config.difficulty.baseline = "better", "steps", str(tmp_path / "a")
    found = evaluate(config, tmp_path / "b", model=FakeModel(add))["difficulty"]
    assert [each["bin"] for each in found["bins"]] == ["1", "2", "3"]
    assert [each["gain"]["difference"] for each in found["bins"]] == [0.75, 1, 1]  # 0 + 0 is 0
    assert read_samples(tmp_path / "b")[4]["bin"] == "2"
    assert (tmp_path / "b" / "difficulty.png").stat().st_size > 1000
    assert json.loads((tmp_path / "b" / "results.json").read_text())["difficulty"] == found
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--by_difficulty"]) in (0, None)
    printed = capsys.readouterr().out
    assert "  1: 4 questions, B - A +0.750" in printed
    assert "cost of an answer" in printed


def test_bad_baselines_and_comparisons_are_named(tmp_path):
    config = gsm8k(tmp_path, difficulty__baseline=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"set config.difficulty.measure"):
        evaluate(config, tmp_path / "out", model=FakeModel(add))
    config.difficulty.measure = "steps"
    with pytest.raises(UserError, match=r"none.results.json"):
        evaluate(config, tmp_path / "out", model=FakeModel(add))
    config.difficulty.baseline, config.difficulty.bins = "", 0
    with pytest.raises(UserError, match=r"config.difficulty.bins = 0 must be at least 1"):
        evaluate(config, tmp_path / "out", model=FakeModel(add))
    for name in ("a", "b"):
        evaluate(gsm8k(tmp_path), tmp_path / name, model=FakeModel(add))
    from smallr.evals.comparison import compare

    with pytest.raises(UserError, match="has bins of difficulty: evaluate one again"):
        compare(tmp_path / "a", tmp_path / "b", by_difficulty=True)
