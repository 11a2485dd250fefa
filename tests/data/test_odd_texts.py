"""Texts that another program has prepared: rendered by some chat template, or JSON in a column of text."""

from __future__ import annotations

import base64
import json
import zlib

import pytest

from smallr.data import files
from smallr.data.errors import DataError
from smallr.evals.benchmarks import find
from smallr.evals.questions import load_items

DEEP = "[" * 20_000 + "]" * 20_000
MARKS = ["<|start_header_id|>user<|end_header_id|>\n\n", "<start_of_turn>user\n", "[INST] ", "<|user|>\n", "<｜User｜>"]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("column", ["prompt", "completion"])
def test_marks_of_another_template_are_noted(run, mark, column):
    row = {"prompt": "2+2?", "completion": "4"}
    report = run([row | {column: mark + row[column]}], chat=True).report
    (note,) = report.notes
    assert repr(mark.split("user")[0].split("User")[0].strip("\n <|｜>"))[1:-1] in note
    assert "a mark of some chat template: if it has been rendered before" in note
    assert report.kept == 1
    assert not run([row | {column: mark + row[column]}], chat=False).report.notes


def test_marks_in_messages_are_noted_once_each(run):
    messages = [{"role": "user", "content": "[INST] 2+2? [/INST]"}, {"role": "assistant", "content": "4"}]
    report = run([{"messages": messages}] * 3).report
    assert [tally.count for tally in report.notes.values()] == [3]


@pytest.mark.parametrize("text", ["a [inst] b", "a <| b |> c", "x < user > y", "the <user> said", "[/b]"])
def test_other_brackets_are_no_marks(run, text):
    assert not run([{"prompt": text, "completion": "4"}], chat=True).report.notes


@pytest.mark.parametrize("column", ["question", "rationale", "answer"])
def test_rationale_rows_that_were_rendered_before_are_left_out(run, column):
    good = {"question": "2+2?", "rationale": "Two and two.", "answer": "4"}
    report = run([good, good | {column: "<|im_start|>user\n4<|im_end|>"}], chat=True).report
    assert report.kept == 1
    assert ["it has been rendered already; set data.chat=False" in reason for reason in report.dropped] == [True]


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        (["f"], "expected a list of objects, or of each as JSON text: not valid JSON"),
        (DEEP, "nested deeper than 100 levels"),
        ([DEEP], "nested deeper than 100 levels"),
        ("7", "expected a list of tools, found a number 7"),
        ("[7]", r"expected a list of objects, found \[7\]"),
    ],
)
def test_tools_that_cannot_be_read_are_named(run, tools, message):
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    with pytest.raises(DataError, match=f"row 0, column 'tools': .*{message}"):
        run([{"messages": messages, "tools": tools}])


def test_arguments_that_are_nested_deep_cost_their_row_alone(run):
    call = {"role": "assistant", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": DEEP}}]}
    odd = {"messages": [{"role": "user", "content": "2+2?"}, call]}
    old = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "function_call", "content": DEEP}]}
    good = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
    assert run([json.loads(json.dumps(row)) for row in (odd, old, good)]).report.kept >= 1


def test_test_cases_of_a_benchmark_that_are_no_cases_cost_their_row_alone(tmp_path, monkeypatch):
    good = {
        "question_content": "Add.", "public_test_cases": json.dumps([{"testtype": "stdin", "input": "1", "output": "1"}]),
        "private_test_cases": "[]", "starter_code": "", "metadata": "{}", "question_id": "a",
    }  # fmt: skip
    bomb = base64.b64encode(zlib.compress(b" " * 10_000)).decode()
    odd = [
        "x",
        DEEP,
        base64.b64encode(b"no zlib").decode(),
        base64.b64encode(zlib.compress(b"no pickle")).decode(),
        bomb,
    ]
    rows = [good, *(good | {"private_test_cases": text} for text in odd)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("smallr.evals.benchmarks.code.UNPACKED", 5000)
    items, report = load_items(find("livecodebench"), str(tmp_path / "rows.jsonl"))
    assert len(items) == 1
    assert sum(tally.count for tally in report.dropped.values()) == len(odd)
    assert any("unpack to more than 5000 bytes" in reason for reason in report.dropped)


@pytest.mark.parametrize("text", ["", "{", DEEP, '{"a": 1, "a": 2}'])
def test_json_in_a_column_is_an_error_of_one_kind(text):
    with pytest.raises(ValueError, match=r"JSON|deeper|twice"):
        files.parse_json(text)
