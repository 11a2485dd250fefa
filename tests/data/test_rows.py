"""Every row format is read as documented, every bad row is counted or raises with its place."""

from __future__ import annotations

import math

import pytest

from smallr.data.drops import DropReport
from smallr.data.errors import DataError
from smallr.data.formats import recognise
from smallr.data.rows import GAPS, RationaleRow, TextRow, parse_rows

USER = {"role": "user", "content": "2 + 2?"}
GOOD = {"role": "assistant", "content": "4"}
BAD = {"role": "assistant", "content": "5"}


def parse(rows, kind):
    report = DropReport("rows.jsonl", 100)
    return list(parse_rows(rows, kind, report)), report


def one(row, kind):
    rows, report = parse([row], kind)
    assert not report.dropped
    return rows[0]


def test_preference_texts():
    row = one({"prompt": "2 + 2?", "chosen": " 4", "rejected": " 5", "beta": 0.5, "gap": "large"}, "preference")
    assert row == TextRow(0, "2 + 2?", (" 4", " 5"), {"beta": 0.5, "gap": 2.0})


def test_preference_without_beta_and_gap():
    row = one({"prompt": "2 + 2?", "chosen": " 4", "rejected": " 5"}, "preference")
    assert math.isnan(row.columns["beta"])
    assert row.columns["gap"] == -1


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
        {"prompt": "2 + 2?", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": "4", "rejected": "5"},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "2 + 2?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {
            "prompt": [{"from": "human", "value": "2 + 2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        {
            "prompt": {"role": ["user"], "content": ["2 + 2?"]},
            "chosen": [{**GOOD, "name": None}],
            "rejected": [BAD],
        },
    ],
    ids=[
        "lists",
        "single",
        "prompt-text",
        "completions-text",
        "implicit",
        "repeated",
        "repeated-list",
        "from",
        "columns",
    ],
)
def test_preference_chats(row):
    assert one(row, "preference") == TextRow(0, (USER,), ((GOOD,), (BAD,)), one(row, "preference").columns)


def test_implicit_prompt_of_chats_keeps_the_system_message_and_earlier_turns():
    first = [{"role": "system", "content": "Be brief."}, USER, GOOD, {"role": "user", "content": "and 3 + 2?"}]
    row = one({"prompt": "and 3 + 2?", "chosen": [*first, BAD], "rejected": [*first, GOOD]}, "preference")
    assert row.prompt == tuple(first)
    assert row.completions == ((BAD,), (GOOD,))


def test_a_chat_that_begins_like_the_other_leaves_each_side_a_message():
    row = one({"chosen": [USER, GOOD], "rejected": [USER, GOOD, USER, BAD]}, "preference")
    assert (row.prompt, row.completions) == ((USER,), ((GOOD,), (GOOD, USER, BAD)))


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: 2 + 2? A: 4", "Q: 2 + 2? A: 5", "Q: 2 + 2? A:"),
        ("Human: hi\n\nAssistant: Hello", "Human: hi\n\nAssistant: Help", "Human: hi\n\nAssistant:"),
        ("Q: x A: yes", "Q: x A: yes indeed", "Q: x A:"),
        ("Q:\n\n 12", "Q:\n\n 13", "Q:"),
    ],
)
def test_implicit_prompt_of_texts_is_cut_before_white_space(chosen, rejected, prompt):
    row = one({"chosen": chosen, "rejected": rejected}, "preference")
    assert row.prompt == prompt
    assert tuple(prompt + side for side in row.completions) == (chosen, rejected)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": " \n", "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "empty prompt"),
        ({"prompt": "p", "chosen": "", "rejected": "b"}, "empty chosen"),
        ({"prompt": "p", "chosen": "a", "rejected": None}, "empty rejected"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "chosen equal to rejected"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [GOOD]}, "chosen equal to rejected"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [{**GOOD, "content": " "}]}, "empty rejected"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [{"role": "tool", "content": "7"}]}, "no assistant turn"),
        (
            {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD, {**GOOD, "content": ""}]},
            "empty assistant turn",
        ),
        ({"chosen": "yes", "rejected": "no"}, "chosen and rejected share no first part to be the prompt"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "chosen and rejected share no first part to be the prompt"),
        (
            {"prompt": "other", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
            "chosen and rejected do not begin with the prompt",
        ),
    ],
)
def test_unusable_pairs_are_counted(row, reason):
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows, report = parse([good, row, good, row], "preference")
    assert [r.row for r in rows] == [0, 2]
    assert {name: (tally.count, tally.rows) for name, tally in report.dropped.items()} == {reason: (2, [1, 3])}
    assert report.total == 4
    assert f"dropped, {reason}: 2 (rows 1, 3)" in str(report)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("beta", -0.1, "beta must be a finite number >= 0, found -0.1"),
        ("beta", float("nan"), "found nan"),
        ("beta", float("inf"), "found inf"),
        ("beta", "strong", "expected a number, found a str 'strong'"),
        ("beta", True, "expected a number"),
        ("gap", "smal", "gap 'smal' must be one of: small, medium, large; did you mean 'small'?"),
        ("gap", 1, "gap 1 must be one of: small"),
        ("prompt", {"a": 1}, "a message needs `role` and `content`, found {'a': 1}"),
        ("chosen", ["a"], "found a list ['a']"),
        (
            "chosen",
            [{"role": "user"}, {"content": "x"}],
            "a message needs `role` and `content`, found {'content': 'x'}",
        ),
        ("rejected", [{"role": "user", "content": [{"type": "text"}]}], "`content` of a message must be text"),
    ],
)
def test_mistakes_name_source_row_and_column(column, value, message):
    good = {"prompt": "p", "chosen": "a", "rejected": "b", "beta": 0.1, "gap": "small"}
    with pytest.raises(DataError) as error:
        parse([good, {**good, column: value}], "preference")
    assert str(error.value).startswith(f"rows.jsonl, row 1, column '{column}': ")
    assert message in str(error.value)


def test_beta_as_text_is_a_number():
    """CSV files hold nothing but text."""
    row = one({"prompt": "p", "chosen": "a", "rejected": "b", "beta": "0.25", "gap": " "}, "preference")
    assert row.columns == {"beta": 0.25, "gap": -1}
    assert GAPS == ("small", "medium", "large")


def test_sft_prompt_and_completion():
    assert one({"prompt": "p", "completion": " c"}, "sft") == TextRow(0, "p", (" c",), {})
    assert one({"prompt": "2 + 2?", "completion": [GOOD]}, "sft") == TextRow(0, (USER,), ((GOOD,),), {})


def test_sft_messages_begin_to_be_scored_at_the_first_assistant_turn():
    row = one({"messages": [USER, GOOD, USER, BAD]}, "sft")
    assert row == TextRow(0, (USER,), ((GOOD, USER, BAD),), {})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [GOOD, USER]}, "empty prompt"),
        ({"messages": None}, "empty messages"),
        ({"messages": [USER, {**GOOD, "content": None}]}, "empty assistant turn"),
        ({"prompt": "", "completion": "c"}, "empty prompt"),
        ({"prompt": "p", "completion": "\t"}, "empty completion"),
    ],
)
def test_unusable_sft_rows_are_counted(row, reason):
    rows, report = parse([row], "sft")
    assert not rows
    assert list(report.dropped) == [reason]


def test_messages_of_text_are_a_mistake():
    with pytest.raises(DataError, match="row 0, column 'messages': expected a list of messages, found text 'hello'"):
        parse([{"messages": "hello"}], "sft")


def test_rationale_rows():
    rows, report = parse(
        [
            {"question": " q ", "answer": "4\n", "rationale": " because "},
            {"question": "q", "answer": "4", "rationale": None},
            {"question": "q", "answer": "4", "rationale": "  "},
            {"question": "q", "answer": None, "rationale": "r"},
            {"question": "", "answer": "4", "rationale": "r"},
        ],
        "rationale",
    )
    assert rows[0] == RationaleRow(0, "q", "4", "because")
    assert [row.rationale for row in rows[1:]] == [None, None]
    assert report.notes["no rationale: answer loss only"].rows == [1, 2]
    assert {name: tally.rows for name, tally in report.dropped.items()} == {"empty answer": [3], "empty question": [4]}
    with pytest.raises(DataError, match=r"row 0, column 'answer': expected text, found a list \[4\]"):
        parse([{"question": "q", "answer": [4], "rationale": "r"}], "rationale")


def test_missing_columns_name_the_nearest():
    with pytest.raises(DataError) as error:
        recognise("preference", ["prompt", "choosen", "rejected"], "rows.jsonl")
    assert "rows.jsonl: preference rows need the columns chosen, rejected; missing 'chosen'" in str(error.value)
    assert "present prompt, choosen, rejected; did you mean 'choosen'?" in str(error.value)
    with pytest.raises(DataError, match=r"messages or prompt, completion; missing 'completion', present prompt"):
        recognise("sft", ["prompt"], "x")
    with pytest.raises(
        DataError, match="'preferences' must be one of: preference, unpaired, sft, completions, rationale, choice; did"
    ):
        recognise("preferences", [], "x")


def test_a_report_shows_the_first_rows_only_and_survives_json():
    report = DropReport("x", 8)
    for row in range(7):
        report.drop(row, "over")
    report.measure(3, 9)
    assert "dropped, over: 7 (rows 0, 1, 2, 3, 4, …)" in str(report)
    assert "longest example 9 tokens (row 3), limit 8" in str(report)
    assert DropReport.from_dict(report.to_dict()) == report
