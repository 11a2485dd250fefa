"""Agreement of rationale and answer: how texts are split, closed forms of the figures, and whole evaluations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from smallr.core.errors import UserError
from smallr.evals.evaluation import evaluate
from smallr.evals.graders import matching
from smallr.evals.graders.symbolic import Symbolic
from smallr.evals.store import read_samples
from smallr.evals.trust import agreement
from smallr.evals.trust.agreement import AGREES, DISAGREES, NO_ANSWER, NO_RATIONALE, UNREAD
from smallr.evals.trust.parts import split
from tests.evals.fakes import FakeModel
from tests.evals.test_evaluation import gsm8k


@pytest.mark.parametrize(
    ("text", "order", "separator", "rationale", "answer"),
    [
        ("3 + 4 = 7 --> 7", "rationale_first", "-->", "3 + 4 = 7", "7"),
        ("a --> b --> 7", "rationale_first", "-->", "a --> b", "7"),
        ("7 --> 3 + 4 = 7 --> so", "answer_first", "-->", "3 + 4 = 7 --> so", "7"),
        ("3 + 4 = 7", "rationale_first", "-->", "3 + 4 = 7", ""),
        ("7", "answer_first", "-->", "", "7"),
        ("The answer is 7.\nFor 3 + 4 = 7.", "answer_first", "", "For 3 + 4 = 7.", "The answer is 7."),
        ("3 + 4 = 7. So the answer is 7.", "rationale_first", "", "3 + 4 = 7.", None),
        ("3 + 4 = 7.\n#### 7", "rationale_first", "", "3 + 4 = 7.", None),
        ("3 + 4 = 7, so \\boxed{7}.", "rationale_first", "", "3 + 4 = 7, so", None),
        ("Add them: 3 + 4 = \\boxed{7}", "rationale_first", "", "Add them: 3 + 4 = 7", None),  # 7 is calculated
        ("Add them: x + 4 = \\boxed{7}", "rationale_first", "", "", None),
        ("He has 3. Then 4. That makes 7.", "rationale_first", "", "He has 3. Then 4.", None),
        ("<think>3 + 4 = 7</think>It is 8.", "rationale_first", "", "3 + 4 = 7", "It is 8."),
        ("", "rationale_first", "", "", ""),
    ],
)
def test_a_text_is_split(text, order, separator, rationale, answer):
    parts = split(text, order, separator)
    assert parts.rationale == rationale
    assert parts.answer == (text if answer is None else answer)


def of(text, order="rationale_first", separator="", grader=None):
    found = agreement.of_answer(text, order, separator, grader or matching.numbers())
    return found.state, found.from_rationale, found.agrees


def test_one_answer_by_rule():
    assert of("3 + 4 = 7. The answer is 7.") == (AGREES, "7", True)
    assert of("3 + 4 = 7. The answer is 8.") == (DISAGREES, "7", False)
    assert of("Hm. The answer is 8.") == (UNREAD, None, None)
    assert of("The answer is 8.") == (NO_RATIONALE, None, None)
    assert of("I cannot tell") == (NO_ANSWER, None, None)
    assert of("8 --> 3 + 4 = 7", "answer_first", "-->") == (DISAGREES, "7", False)
    assert of("1,000 --> it is 1000", "answer_first", "-->")[0] == AGREES
    letters = matching.options("ABC")
    assert of("Only heat melts ice: option B is right. The answer is (B).", grader=letters)[0] == AGREES
    assert (
        of("no --> the coin is flipped, so yes", "answer_first", "-->", matching.words(("yes", "no")))[0] == DISAGREES
    )


def test_the_judge_of_single_answers():
    judge = agreement.judge("answer_first", "-->", matching.numbers())
    assert [judge(text, None) for text in ("7 --> 3 + 4 = 7", "8 --> 3 + 4 = 7", "8")] == [True, False, None]


def record(question, correct, state, sample=0):
    return {"id": question, "sample": sample, "correct": correct, "agreement": state}


def test_figures_have_their_closed_forms():
    """Of 20 answers 12 agree (9 right), 6 disagree (1 right), 2 are not read: every figure by hand."""
    cells = [(True, AGREES, 9), (False, AGREES, 3), (True, DISAGREES, 1), (False, DISAGREES, 5), (False, UNREAD, 2)]
    records = [record(f"{state}{right}{i}", right, state) for right, state, count in cells for i in range(count)]
    found = agreement.report(records, "answer_first", "rule")
    assert found["counts"] == {AGREES: 12, DISAGREES: 6, UNREAD: 2, NO_RATIONALE: 0, NO_ANSWER: 0}
    rate = found["rate"]
    assert rate["value"] == pytest.approx(12 / 18)
    # `Estimate` counts as many answers as have the standard error of a sample: n - 1 for one sample a question.
    wilson = stats.binomtest(12, 18).proportion_ci(method="wilson")
    assert rate["interval"] == pytest.approx([wilson.low, wilson.high], abs=0.01)
    assert {state: value["value"] for state, value in found["accuracy"].items()} == pytest.approx(
        {AGREES: 9 / 12, DISAGREES: 1 / 6, UNREAD: 0}
    )
    errors = found["errors"]
    assert (errors["precision"]["value"], errors["recall"]["value"]) == pytest.approx((5 / 6, 5 / 8))
    compared = [each for each in records if each["agreement"] != UNREAD]
    flags = [
        [each["agreement"] == DISAGREES for each in compared if each["correct"] is right] for right in (False, True)
    ]
    pairs = len(flags[0]) * len(flags[1])
    assert errors["auroc"]["value"] == pytest.approx(stats.mannwhitneyu(*map(np.array, flags)).statistic / pairs)
    low, high = errors["auroc"]["interval"]
    # DeLong's standard error of a sign that is there or not.
    error = math.sqrt(5 / 8 * 3 / 8 / 8 + 1 / 10 * 9 / 10 / 10) / 2
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.2)
    assert low < errors["auroc"]["value"] < high
    assert "AUROC 0.762" in "\n".join(agreement.lines(found))


def test_figures_that_are_not_known_are_none():
    found = agreement.report([record("a", True, AGREES)], "answer_first", "rule")
    assert found["errors"]["precision"] == {"value": None, "interval": None, "count": 0}
    assert found["errors"]["auroc"]["value"] is None
    assert "AUROC –" in agreement.lines(found)[-1]
    assert agreement.report([], "answer_first", "rule")["rate"]["value"] is None


def test_samples_of_one_question_are_not_independent():
    records = [record(str(i // 4), True, AGREES if i < 8 else DISAGREES, i % 4) for i in range(16)]
    wide = agreement.report(records, "answer_first", "rule")["rate"]["interval"]
    single = agreement.report([{**each, "id": str(i)} for i, each in enumerate(records)], "answer_first", "rule")
    narrow = single["rate"]["interval"]
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


# --- evaluations


def number(prompt: str) -> int:
    return int(prompt.split()[2])


def test_an_answer_first_student_is_graded_by_what_it_answers(tmp_path):
    """Answers of 3 and 4 are wrong; 4's rationale leads to the right one, and 5's to a wrong one."""
    wrong, off = {3: 99, 4: 99}, {3: 99, 5: 98}

    def say(prompt):
        n = number(prompt)
        return f"{wrong.get(n, 2 * n)} --> {n} + {n} = {off.get(n, 2 * n)}"

    config = gsm8k(tmp_path, agreement__order="answer_first", agreement__separator="-->")
    results = evaluate(config, tmp_path / "out", model=FakeModel(say))
    assert results["metrics"]["pass@1"]["value"] == pytest.approx(4 / 6)
    found = results["agreement"]
    assert (found["rate"]["value"], found["order"]) == (pytest.approx(4 / 6), "answer_first")
    assert found["accuracy"][DISAGREES]["value"] == found["errors"]["precision"]["value"] == 0.5
    assert found["errors"]["recall"]["value"] == 0.5
    assert found["errors"]["auroc"]["value"] == pytest.approx((1 + 1 / 2 - 1 / 4) / 2)
    samples = read_samples(tmp_path / "out")
    assert [sample["agreement"] for sample in samples] == [AGREES] * 4 + [DISAGREES] * 2
    assert [sample["from_rationale"] for sample in samples] == ["0", "2", "4", "99", "8", "98"]
    assert samples[3]["extracted"] == "99"


def test_the_same_answers_are_measured_later_without_asking(tmp_path):
    model = FakeModel(lambda prompt: f"{number(prompt)} + {number(prompt)} = 5. The answer is {2 * number(prompt)}.")
    assert "agreement" not in evaluate(gsm8k(tmp_path), tmp_path / "out", model=model)
    asked = len(model.requests)
    config = gsm8k(tmp_path, agreement__order="rationale_first")
    found = evaluate(config, tmp_path / "out", model=model)["agreement"]
    assert (len(model.requests), found["rate"]["value"]) == (asked, 0)
    assert found["accuracy"][DISAGREES]["value"] == 1


def test_the_model_reads_its_rationales_once(tmp_path):
    def say(prompt):
        if prompt.startswith("Read"):
            assert "answer is" not in prompt
            return "" if "2 + 2" in prompt else "It comes to 6."
        return f"{number(prompt)} + {number(prompt)} is {{sum}}. The answer is {2 * number(prompt)}."

    fields = {"order": "rationale_first", "reader": "model", "prompt": "Read: {rationale}", "max_tokens": 9}
    config = gsm8k(tmp_path, **{f"agreement__{name}": value for name, value in fields.items()})
    model = FakeModel(say)
    found = evaluate(config, tmp_path / "out", model=model)["agreement"]
    assert found["counts"] == {AGREES: 1, DISAGREES: 4, UNREAD: 0, NO_RATIONALE: 1, NO_ANSWER: 0}
    reading = [request for request in model.requests if request.messages[0]["content"].startswith("Read")]
    assert (len(reading), reading[0].params.max_tokens) == (6, 9)
    assert {"Read: 0 + 0 is {sum}."} < {request.messages[0]["content"] for request in reading}
    again = FakeModel(say)
    assert evaluate(config, tmp_path / "out", model=again)["agreement"] == found
    assert not again.requests


def test_bad_settings_are_refused_before_anything_is_asked(tmp_path):
    for fields, message in (
        ({"order": "rational_first"}, "'rational_first' must be one of: answer_first, rationale_first"),
        (
            {"order": "answer_first", "reader": "person"},
            "config.agreement.reader = 'person' must be one of: rule, model",
        ),
        ({"order": "answer_first", "prompt": "Well?"}, r"config.agreement.prompt lacks \{rationale\}"),
    ):
        config = gsm8k(tmp_path, **{f"agreement__{name}": value for name, value in fields.items()})
        model = FakeModel(str)
        with pytest.raises(UserError, match=message):
            evaluate(config, tmp_path / "out", model=model)
        assert not model.requests
    with pytest.raises(UserError, match="is a program"):
        agreement.check(gsm8k(tmp_path, agreement__order="answer_first").agreement, runs_code=True)


@pytest.mark.process
def test_mathematics_is_compared_as_latex():
    grader = Symbolic()
    rationale, given = "It follows that x = \\sqrt{8}, or $x = 2\\sqrt{2}$", ["\\sqrt{8}", "\\frac{1}{2}"]
    states = [each.state for each in agreement.compare([rationale] * 2, given, grader)]
    grader.close()
    assert states == [AGREES, DISAGREES]
