"""The critic that grades: strict reading, what fits, selection by bins, the oracle, and a whole run."""

from __future__ import annotations

from collections import Counter

import datasets
import pytest

from configs.crv.annotate import get_config
from smallr.core.errors import UserError
from smallr.data.builtin import make_questions
from smallr.data.builtin.reading import cognitive_difficulty, verbosity
from smallr.methods.crv.config import base, check
from smallr.methods.crv.grades import Fit, Grades, Selection, fit_of, read_grades, select, selection_of
from smallr.methods.crv.pipeline import run_crv
from smallr.sampling.requests import Sample
from tests.methods.crv.fakes import ROW, worker

RIGHT, GOOD = "VERDICT: correct", "3 * 4 = 12 and 2 + 12 = 14, so \\boxed{14}."


@pytest.mark.parametrize(
    ("text", "grades", "problem"),
    [
        ("verbosity: 4\ncognitive difficulty: 5", (4, 5), ""),
        ("Cognitive Difficulty: 0\n\n**Verbosity**: 9", (9, 0), ""),
        ("<think>verbosity: 1</think>\nverbosity: 3/9\ncognitive_difficulty = 4.", (3, 4), ""),
        ("", None, "empty reply"),
        ("It fits.", None, "no grades"),
        ("verbosity: 4", None, "a grade is missing"),
        ("verbosity: 4\nverbosity: 5", None, "a grade is missing"),
        ("verbosity: 4\ncognitive difficulty: 5\nverbosity: 4", None, "several grades"),
        ("verbosity: 4\ncognitive difficulty: 5\nsince it is plain", None, "more than grades"),
        ("verbosity: 4 or 5\ncognitive difficulty: 5", None, "a grade is missing"),
        ("verbosity: 10\ncognitive difficulty: 5", None, "a grade beyond 0 to 9"),
        ("verbosity: -1\ncognitive difficulty: 5", None, "a grade beyond 0 to 9"),
        ("verbosity: 4.5\ncognitive difficulty: 5", None, "a grade is missing"),
    ],
)
def test_replies_are_read_strictly(text, grades, problem):
    assert read_grades(Sample(text, "stop")) == (grades and Grades(*grades), problem)


def test_a_reply_that_was_cut_off():
    assert read_grades(Sample("verbosity: 4\ncognitive", "length")) == (None, "cut off")


def test_what_fits():
    fit = Fit((3, 5), 5)
    assert [fit.label(Grades(v, c)) for v, c in ((2, 1), (2, 9), (3, 5), (5, 0), (6, 0), (4, 6))] == [
        "easy", "easy", "medium", "medium", "hard", "hard",
    ]  # fmt: skip
    config = base()
    assert fit_of(config.grades) == fit
    for name, value in (("verbosity", (5, 3)), ("verbosity", (3,)), ("cognitive_difficulty", 10)):
        config = base()
        config.grades[name] = value
        with pytest.raises(UserError, match=f"config.grades.{name} = "):
            fit_of(config.grades)


def test_grades_decide_how_a_rationale_is_rethought_and_stand_in_the_row():
    reply = "verbosity: 1\ncognitive difficulty: 2"
    after = "verbosity: 4\ncognitive difficulty: 3"
    out, models = worker(fit=Fit((3, 5), 5), recheck=True)(critic=[reply, after], rethinker=[GOOD], verifier=[RIGHT])
    assert (out["label"], out["relabel"], out["attempts"][0]["action"]) == ("easy", "medium", "extend")
    assert [out[name] for name in ("verbosity", "cognitive_difficulty", "verbosity_after", "cognitive_difficulty_after")] == [
        1, 2, 4, 3,
    ]  # fmt: skip
    assert "verbosity: N" in models["critic"].prompts[0]
    out, _ = worker(fit=Fit((0, 5), 5), recheck=True)(critic=[reply], verifier=[RIGHT])  # what fits is graded once
    assert (out["label"], out["verbosity_after"], out["rationale"]) == ("medium", 1, ROW.rationale)
    out, _ = worker(fit=Fit((3, 5), 5), reasks=1)(critic=["good", "verbosity: 4"])
    assert (out["reason"], out["verbosity"]) == ("critic: a grade is missing", -1)


def graded(*grades):
    return [{"verbosity_after": v, "cognitive_difficulty_after": c} for v, c in grades]


def test_rows_are_filtered_and_mixed_by_bins():
    rows = graded((3, 1), (4, 2), (5, 2), (4, 4), (8, 4), (4, 8), (7, 7), (-1, -1))
    everything = Selection((0, 9), (0, 9), (0, 3, 6, 10), (1, 1, 1), False)
    assert select(rows, everything) == ([0, 1, 3, 4, 5, 6], {"not graded": 1, "more than the share": 1})
    thrice = Selection((0, 9), (0, 9), (0, 3, 6, 10), (3, 1, 0), False)
    assert select(rows, thrice)[0] == [0, 1, 2, 3]
    spans = Selection((3, 5), (1, 4), (0, 10), (1,), False)
    assert select(rows, spans) == ([0, 1, 2, 3], {"not graded": 1, "verbosity": 2, "cognitive_difficulty": 1})
    matched = Selection((0, 9), (0, 9), (3, 6, 10), (1, 1), True)
    assert select(rows, matched) == ([3, 6], {"not graded": 1, "beyond the bins": 3, "not matched": 2})
    assert select([], everything) == ([], {})


def test_bad_settings_are_named():
    for fields, message in (
        ({"verbosity": (9, 1)}, r"config.select.verbosity = \(9, 1\)"),
        ({"edges": (3, 3)}, r"config.select.edges = \(3, 3\)"),
        ({"edges": (0, 3, 10), "shares": (1,)}, "one for each of the 2 bins"),
    ):
        config = base()
        config.select.update(fields)
        with pytest.raises(UserError, match=message):
            selection_of(config.select)
    assert selection_of(base().select) is None
    config = base()
    config.model, config.select.edges = "oracle:arithmetic", (0, 10)
    with pytest.raises(UserError, match=r"config.critic=grades and config.recheck=True"):
        check(config)
    config.critic = "marks"
    with pytest.raises(UserError, match=r"config.critic = 'marks' must be one of: words, grades"):
        check(config)


def test_the_oracle_grades_by_length_and_by_structure():
    questions = make_questions(seed=5, train=200, test=1)["train"]
    terse = [q for q in questions if q.label == "easy"]
    involved = [q for q in questions if q.label == "hard"]
    assert (
        max(verbosity(q.problem, q.unfitted) for q in terse)
        < 3
        <= min(verbosity(q.problem, q.fitted) for q in questions)
    )
    for q in involved:  # an unknown and a detour
        assert cognitive_difficulty(q.problem, q.unfitted) == cognitive_difficulty(q.problem, q.fitted) + 3


def test_a_whole_run_with_grades(tmp_path):
    config = get_config()
    config.model, config.critic, config.recheck, config.data.splits = "oracle:arithmetic", "grades", True, "train[:40]"
    config.select.verbosity, config.select.edges, config.cache = (3, 5), (0, 4, 10), False
    report = run_crv(config, tmp_path)
    assert report["rows"]["verified"] == 40
    rows = datasets.load_from_disk(str(tmp_path / "verified"))["train"].to_list()
    assert Counter(row["verbosity"] for row in rows) == {
        grade: count for grade, count in enumerate(report["grades"]["verbosity"]) if count
    }
    for row in rows:
        assert Fit((3, 5), 5).label(Grades(row["verbosity"], row["cognitive_difficulty"])) == row["label"]
    chosen = datasets.load_from_disk(str(tmp_path / "selected"))["train"].to_list()
    counts = report["selected"]["train"]
    assert len(chosen) == counts["selected"] == 40 - sum(value for name, value in counts.items() if name != "selected")
    assert {3 <= row["verbosity_after"] <= 5 for row in chosen} == {True}
    assert abs(2 * sum(row["cognitive_difficulty_after"] < 4 for row in chosen) - len(chosen)) <= 1
    assert "Selected of train" in (tmp_path / "report.md").read_text()
