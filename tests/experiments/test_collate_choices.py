"""Rows of a choice task: options in the question, the text of one as the target."""

from __future__ import annotations

import json

import pytest

from experiments.collate.choices import choice_row, main
from smallr.core.errors import UserError
from smallr.data.sources import load_rows

ROW = {
    "question": "Where is a bald eagle? ",
    "choices": ["texas", "minnesota"],
    "answer": "minnesota",
    "palm_rationale": " Eagles fly there.",
    "palm_correct": True,
}


def test_options_stand_in_the_question_and_wrong_rationales_are_left_out(tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(each) + "\n" for each in (ROW, {**ROW, "palm_correct": False})))
    main([f"--source={source}", f"--out={tmp_path / 'rows'}"])
    question = "Where is a bald eagle?\nOptions: texas; minnesota"
    expected = {"question": question, "answer": "minnesota", "rationale": "Eagles fly there."}
    assert list(load_rows(str(tmp_path / "rows"))) == [expected, {**expected, "rationale": ""}]
    assert capsys.readouterr().out.endswith("2 rows, 1 with a rationale\n")


def test_an_answer_that_is_no_option_is_refused():
    with pytest.raises(UserError, match="'ohio' is none of the options"):
        choice_row({**ROW, "answer": "ohio"})
