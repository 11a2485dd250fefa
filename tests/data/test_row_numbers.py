"""Messages name a row by its number in the file, whatever part of it was loaded."""

from __future__ import annotations

import json

import datasets
import pytest

from smallr.data.drops import DropReport
from smallr.data.encode import Encoder
from smallr.data.errors import DataError
from smallr.data.formats import read_as
from smallr.data.sources import load_part
from smallr.data.tokenize import ExampleMaker, TokenizeOptions, tokenize
from smallr.evals.benchmarks import find
from smallr.evals.questions import load_items
from smallr.training.rows import read_rows
from tests.data.toy_tokenizer import build
from tests.runs import smoke

BAD = 7
TOY = build()


@pytest.fixture
def rows_file(tmp_path):
    rows = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(12)]
    rows[BAD]["completion"] = ""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tokenised(path, split, tmp_path, without=""):
    part = load_part(str(path), split, without=without)
    options = TokenizeOptions("sft", 100)
    return tokenize(part.rows, TOY, options, source="rows.jsonl", cache=tmp_path, numbers=part.numbers)


@pytest.mark.parametrize("split", ["train", "train[5:]", "train[-6:]", "train[50%:]"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_dropped_row_has_its_number_in_the_file(rows_file, tmp_path, split, times):
    for _ in range(times):  # the second is read from the cache
        report = str(tokenised(rows_file, split, tmp_path).report)
    assert f"1 (row {BAD})" in report


def test_rows_that_are_held_out_count_too(rows_file, tmp_path):
    report = str(tokenised(rows_file, "train", tmp_path, without="train[2:6]").report)
    assert "8 rows, 7 kept" in report
    assert f"1 (row {BAD})" in report


def test_one_cache_entry_serves_parts_that_are_numbered_otherwise(tmp_path):
    row = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
    empty = json.dumps({"prompt": "a", "completion": ""}) + "\n"
    (tmp_path / "rows.jsonl").write_text((row + empty) * 2)
    reports = [str(tokenised(tmp_path / "rows.jsonl", split, tmp_path).report) for split in ("train[:2]", "train[2:]")]
    assert ["(row 1)" in reports[0], "(row 3)" in reports[1]] == [True, True]
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_an_error_has_the_number_in_the_file(rows_file, tmp_path):
    lines = rows_file.read_text().splitlines()
    lines[BAD] = json.dumps({"prompt": "a", "completion": [1, 2]})
    rows_file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=f"rows.jsonl, row {BAD}, column 'completion'"):
        tokenised(rows_file, "train[6:]", tmp_path)


def test_a_part_of_the_rows_that_another_process_tokenises_keeps_the_numbers(tmp_path):
    rows = datasets.Dataset.from_list([{"prompt": "a", "completion": text} for text in ("b", "")])
    options = TokenizeOptions("sft", 100)
    reading = read_as("sft", rows.column_names, rows, "rows.jsonl", "")
    report = DropReport("rows.jsonl", 100, numbers=dict(enumerate([40, 43], 7)))  # as `tokenize_worker` makes it
    ExampleMaker(Encoder(TOY), TOY, options, reading).write(tmp_path / "tokens", rows, report, start=7)
    assert report.to_dict()["dropped"] == {"empty completion": {"count": 1, "rows": [8]}}
    assert "1 (row 43)" in str(report)


def test_a_fraction_that_is_held_out(rows_file):
    config = smoke("sft", **{"data.train": str(rows_file), "data.eval": "", "data.eval_fraction": 0.25})
    found = {name: read_rows(config, name) for name in ("train", "eval")}
    assert sorted([*found["train"].numbers, *found["eval"].numbers]) == list(range(12))
    for split in found.values():
        for number, prompt in zip(split.numbers, split.rows["prompt"], strict=True):
            assert prompt == f"What is {number}?"


def test_a_benchmark_s_rows(tmp_path):
    rows = [{"question": f"{n}?", "answer": f"#### {n}" if n != 4 else None} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, report = load_items(find("gsm8k"), str(tmp_path / "rows.jsonl"), "train[3:]")
    assert "(row 4)" in str(report)
