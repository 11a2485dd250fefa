"""The table's parts: the teacher's data, the calculator's grades, the arms' stages, the report."""

from __future__ import annotations

import pytest

from experiments.decomposition.arms import ARMS, Recipe, train_arms
from experiments.decomposition.problems import Source, data_of, graded
from experiments.decomposition.table import DECODING, METRICS, flags, main, recipe_of, report, size_of
from smallr.agents.method_stages import MethodStages
from smallr.core.errors import UserError

SOURCE = Source(("ages",), 200, 12, 6, omit=0.3, repeat=0.2, useless=0.2, verdict_error=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_of(tmp_path_factory.mktemp("data"), SOURCE, 0)


def test_the_teacher_is_imperfect_and_its_rewards_say_where(data):
    rows = data["train"]
    assert len(rows) == 3 * SOURCE.questions
    correct = [row["rewards"]["answer_correctness"] for row in rows]
    assert 0 < sum(correct) < len(rows)
    for row in rows:
        useful = row["rewards"]["usefulness"]
        assert len(useful) == len(row["answers"])
        assert set(useful) <= {0.0, 1.0}
        if row["rewards"]["answer_correctness"]:
            assert sum(useful) == 4, "the problem has four steps, and all of them are needed"
        for text, value in zip(row["answers"], useful, strict=True):
            assert not (text.startswith("Does the problem say") and value)
    assert not {row["question"] for row in rows} & {row["question"] for row in data["test"]}


def test_grades_are_those_of_the_calculator(data):
    test = data["test"][:2]
    perfect = [row["reference"] for row in test]
    assert graded(test, [[each] for each in perfect]) == {
        "correct": 1.0,
        "granularity": 1.0,
        "bleu": pytest.approx(1.0),
        "repeated": 0.0,
        "count": 4.0,
        "right": [1.0, 1.0],
    }
    found = graded(test, [[perfect[0], perfect[0][1:]], [perfect[1][:1] * 2, []]])
    assert found["right"] == [0.5, 0.0]
    assert (found["repeated"], found["count"]) == (0.25, 9 / 4)


def test_arms_share_the_cloned_student(tmp_path):
    stages = MethodStages(tmp_path)
    rows = stages.make("data", dict)
    arms = train_arms(stages, ARMS, rows, tmp_path / "student", Recipe(), 0)
    assert tuple(arms) == ARMS
    steered = {name: arm for name, arm in arms.items() if arm.advantage}
    assert set(steered) == {"ILQL full", "ILQL sparse", "ILQL as released"}
    assert {arm.model for arm in steered.values()} == {arms["BC"].model}
    assert len({arm.advantage.digest for arm in steered.values()}) == 3
    assert len({arm.model.digest for name, arm in arms.items() if name not in steered}) == 5
    alone = train_arms(MethodStages(tmp_path), ["CogPO"], rows, tmp_path / "student", Recipe(), 0)["CogPO"]
    assert alone.model.digest == arms["CogPO"].model.digest


def run(arm: str, seed: int, right: list[float]) -> dict:
    metrics = dict.fromkeys(METRICS, sum(right) / len(right))
    return {"arm": arm, "size": "dist", "seed": seed, **{name: {**metrics, "right": right} for name in DECODING}}


def test_the_report_has_intervals_tests_and_verdicts(tmp_path):
    rows = [run("BC", seed, [1.0] * 10 + [0.0] * 30) for seed in range(2)]
    rows += [run("filtered BC", seed, [1.0] * (30 + seed) + [0.0] * (10 - seed)) for seed in range(2)]
    page = report(rows, tmp_path)
    assert "| dist | BC | 2 | 0.250 [" in page
    assert "| dist | filtered BC | 2 | 0.762 [" in page
    assert page.count("| Filtered BC beats BC | dist | +0.512 [") == len(DECODING)
    assert "| 0.000, 0.000 |" in page
    assert "not run" in page
    assert (tmp_path / "sampled.csv").exists()
    assert report([], tmp_path) == "nothing is finished yet"


def test_sizes_and_flags(capsys):
    options = flags().parse_args(["--layers=4", "--rate=0.5"])
    assert (size_of(options, "dist").layers, size_of(options, "small").layers) == (2, 4)
    assert recipe_of(options).rate == 0.5
    with pytest.raises(UserError, match="must be one of: dist, small"):
        size_of(options, "large")
    with pytest.raises(SystemExit, match="'PPO' must be one of: teacher; BC"):
        main(["--arms=BC;PPO"])
