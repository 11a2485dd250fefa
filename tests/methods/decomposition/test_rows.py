"""The published layout: read, checked, written, and made again of raw rows."""

from __future__ import annotations

import json
import math

import pytest
from datasets import Dataset

from smallr.data.errors import DataError
from smallr.methods.decomposition.answers import AnswerCheck, answer_check, final_line, gold_number, published_number
from smallr.methods.decomposition.output import convert
from smallr.methods.decomposition.raw import decompositions, load_raw, numbered, read_numbered, usefulness_of
from smallr.methods.decomposition.rows import FEATURES, load_decompositions, parse_row
from smallr.methods.decomposition.sequence import PUBLISHED, Markers
from tests.methods.decomposition.shared import QUESTION, RELEASED, ROW, changed, needs_released, write_jsonl

RAW = {
    "problem": QUESTION,
    "questions": ["Q1: How many apples does Tom buy?\nQ2: How many apples does he have?", "Q1: How many?", "none"],
    "answers": ["A1: 7\nA2: 12 + 7 = 19\n\nFinal answer: 19.", "A1: 5\n\nFinal answer: $5", None],
    "feedback": [["Q1: No\nQ2: Yes", "Q1: Yes\nQ2: Yes", "Q1: No\nQ2: Yes"], ["Q1: No", "Q1: no"], []],
    "answer": "#### 19",
}


@pytest.mark.parametrize("pack", [lambda rows: rows, lambda rows: [rows]], ids=["lines", "one array"])
def test_rows_are_written_as_they_were_read(tmp_path, pack):
    source = write_jsonl(tmp_path / "rows.jsonl", pack([ROW, changed(usefulness=[])]))
    loaded = load_decompositions(source)
    assert [row.published() for row in loaded.rows] == [ROW, changed(usefulness=[])]
    assert loaded.left_out == []
    assert loaded.rows[0].mean_usefulness == pytest.approx(2 / 3)
    assert math.isnan(loaded.rows[1].mean_usefulness)
    Dataset.from_list([row.published() for row in loaded.rows], features=FEATURES).save_to_disk(tmp_path / "saved")
    assert load_decompositions(str(tmp_path / "saved")) == loaded


BAD = [
    (changed(usefulness=[1.0]), "'rewards.usefulness': 1 values for 2 sub-questions; give one for each, or none"),
    (changed(usefulness=[1.0, 1.5]), "'rewards.usefulness': value 1 is 1.5; it must be from 0 to 1"),
    (changed(usefulness=[1.0, math.nan]), "'rewards.usefulness': value 1 is nan; it must be from 0 to 1"),
    (changed(answers=[], usefulness=[]), "'answers': the list of sub-questions is empty; a row needs at least one"),
    (changed(answers=["a </QUE> b", "c"]), "'answers': sub-question 0 holds the marker '</QUE>': take it out, or"),
    (changed(answers=["a", " "]), "'answers': sub-question 1 must be a text that is not empty"),
    (changed(question="Say <QUE>"), "'question': it holds the marker '<QUE>'"),
    (changed(question=" "), "'question': expected the text of a problem"),
    (changed(answer_correctness=0.5), "'rewards.answer_correctness': expected 0 or 1, found 0.5"),
    ({**ROW, "reviewed": {"status": "rejected"}}, "'reviewed': a person has rejected it"),
    (changed(true_answer=None), "'true_answer': expected a finite number, found None"),
]


def test_each_bad_row_is_left_out_with_one_clear_message(tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", [ROW, *(row for row, _ in BAD)])
    loaded = load_decompositions(source)
    assert len(loaded.rows) == 1
    assert len(loaded.left_out) == len(BAD)
    for number, (message, (_, expected)) in enumerate(zip(loaded.left_out, BAD, strict=True), 1):
        assert message.startswith(f"{source}, row {number}, column {expected}"), message


def test_a_source_without_a_good_row_or_a_column_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"row 0, column 'answers': the list .* \(none of the 1 rows can be used\)"):
        load_decompositions(write_jsonl(tmp_path / "rows.jsonl", [BAD[3][0]]))
    with pytest.raises(DataError, match=r"no column 'rewards'; decompositions have the columns question, answers"):
        load_decompositions(
            write_jsonl(tmp_path / "other.jsonl", [{"question": "a", "answers": ["b"], "true_answer": 1.0}])
        )


def test_markers():
    text = PUBLISHED.prompt("Why?") + PUBLISHED.completion(["Who?", "How?"])
    assert text == "Why?\n <QUE> Who? </QUE> <QUE> How? </QUE>"
    assert PUBLISHED.read(text) == ["Who?", "How?"]
    assert PUBLISHED.read("Hm <QUE> a  b </QUE><QUE></QUE> and <QUE> cut o") == ["a b"]
    for markers in ({"open": ""}, {"close": " x"}, {"open": "x", "close": "</x>"}):
        with pytest.raises(ValueError, match=r"config.markers.\w+ = "):
            Markers(**markers)


def test_raw_rows_become_decompositions(tmp_path):
    (row,) = load_raw(write_jsonl(tmp_path / "raw.jsonl", [RAW]))
    assert row.published() == RAW
    found, left_out = decompositions([row], AnswerCheck("published"))
    assert left_out == [
        "raw row 0, set 2, column 'answers': the list of sub-questions is empty; a row needs at least one"
    ]
    assert [each.published() for each in found] == [
        ROW,
        {**ROW, "answers": ["How many?"], "rewards": {"answer_correctness": 0.0, "usefulness": [0.0]}},
    ]
    broken = write_jsonl(tmp_path / "broken.jsonl", [{**RAW, "answers": ["A1: 7"]}])
    with pytest.raises(DataError, match=r"row 0, column 'answers': 1 values for 3 sets of sub-questions"):
        load_raw(broken)


def test_numbered_lines_and_verdicts():
    assert read_numbered(numbered(["Who?", "How?"])) == ["Who?", "How?"]
    assert usefulness_of(["Q1: Yes\nQ2: No", "Q1: Yes"], 2) == (1.0, 0.0)
    assert usefulness_of([], 2) == ()


def test_answers_by_math_verify_and_by_the_published_parser():
    replies = [
        "Final answer: 2,125",
        "so\nFINAL ANSWER: **-3** \nProblem: 4",
        "it comes out as 3",
        None,
        "Final answer: $1,300",
    ]
    golds = ["2,125", "it is so\n#### -3", "3", "3", "1,200"]
    with answer_check() as check:
        assert check.check(replies, golds) == [True, True, None, None, False]
    assert AnswerCheck("published").check(replies, golds) == [True, True, True, None, True]
    assert final_line(replies[1]) == "-3"
    assert [gold_number(gold) for gold in [*golds, "", "no"]] == [2125, -3, 3, 3, 1200, None, None]
    assert published_number("-2,125") == 2


def test_rows_that_are_there_are_converted_and_split_by_problem(tmp_path):
    rows = [changed(question=f"{QUESTION} {i}", answer_correctness=float(j)) for i in range(20) for j in range(2)]
    source = write_jsonl(tmp_path / "rows.jsonl", [*rows, BAD[0][0]])
    report = convert(source, "train", tmp_path / "out", validation=0.3, parser="published", markers=PUBLISHED)
    assert len(report["left_out"]) == 1
    assert json.loads((tmp_path / "out" / "convert.json").read_text()) == report
    splits = {
        name: load_decompositions(str(tmp_path / "out" / "decompositions"), name).rows
        for name in ("train", "validation")
    }
    questions = {name: {row.question for row in found} for name, found in splits.items()}
    assert not questions["train"] & questions["validation"]
    assert sum(map(len, splits.values())) == 40
    assert 2 <= len(questions["validation"]) <= 12
    assert report["rows"]["pairs"] == {"train": 0, "validation": 0}  # two that differ in their answers alone
    assert not (tmp_path / "out" / "pairs").exists()
    raw = write_jsonl(tmp_path / "raw.jsonl", [RAW])
    report = convert(raw, "train", tmp_path / "raw", validation=0.0, parser="published", markers=PUBLISHED)
    assert report["rows"]["raw"] == {"train": 1}
    assert report["rows"]["bc"] == {"train": 2}
    assert parse_row(
        json.loads((tmp_path / "raw" / "decompositions.train.jsonl").read_text().splitlines()[0])
    ) == parse_row(ROW)


@needs_released
def test_the_released_test_half_is_made_again_to_the_bit():
    raw = load_raw(str(RELEASED / "qg_test_data_raw.jsonl.gz"))
    released = load_decompositions(str(RELEASED / "qg_test_dataset.jsonl.gz"))
    made, left_out = decompositions(raw, AnswerCheck("published"), published=True)
    assert len(made) == 1319
    assert made == released.rows
    assert left_out == released.left_out == []
