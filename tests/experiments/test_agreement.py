"""The experiment on agreement: how coins are read, its rows, and its figures for a student whose replies are known."""

from __future__ import annotations

from experiments.adaptive.agreement import Experiment, measure, side_up, table
from experiments.adaptive.students import Recipe
from smallr.core.journal import Journal
from tests.evals.fakes import FakeModel

RECIPE = Recipe("scratch", False, 1)


def test_the_side_of_a_coin_is_an_answer():
    texts = ("2 is even. So it is heads up.", "So it is tails up.", "yes", "heads, then tails", "up")
    assert [side_up(text) for text in texts] == ["yes", "no", "yes", "no", None]


def test_a_student_that_guesses_and_then_calculates(tmp_path):
    experiment = Experiment(RECIPE, {}, "", ("change", "recipe"), 200, 6, 8, (1, 16, 300))
    training, held_out = experiment.rows(0)
    assert (len(training), len(held_out)) == (6, 8)
    assert all("boxed" not in row.rationale and "answer" not in row.rationale.lower() for row in held_out)
    steps = {row.question: row for row in held_out}

    def say(prompt):
        if prompt.startswith("### "):
            return " none"
        row = steps[prompt.removesuffix(" ###")]
        return f" {row.answer if row in held_out[:3] else 0} --> {row.rationale}"

    found = measure(
        FakeModel(say), held_out, "answer_first", 9, experiment.grader(), Journal(tmp_path / "j.jsonl", ("samples",))
    )
    assert (found["rule"]["right"], found["rule"]["right_by_rationale"]) == (3 / 8, 1)
    assert found["rule"]["errors"]["precision"]["value"] == found["rule"]["errors"]["recall"]["value"] == 1
    assert found["model"]["counts"]["unread"] == 8
    assert "| answer_first-0 | rule | 0.375 | 1.000 | 8 of 8 |" in table({"answer_first-0": found})
