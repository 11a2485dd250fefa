"""One reader of files: what is text is read the same whoever asks, what is not is an error with its place."""

from __future__ import annotations

import gzip
import io
import json
import logging
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallr.core.errors import UserError
from smallr.data import files
from smallr.data.drops import DropReport
from smallr.data.errors import DataError
from smallr.data.files import PROBLEM, lone_surrogate, read_lines, read_records
from smallr.data.sources import load_rows
from smallr.evals.benchmarks import find
from smallr.evals.questions import load_items
from smallr.methods.crv.holdout import Holdout
from smallr.sampling.files import read_prompts, write_results
from smallr.sampling.requests import Request, Result, Usage

ROWS = [{"question": "a\u2028b\x0cc\x85d", "answer": "#### 4"}, {"question": "é", "answer": "#### 5"}]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]
HALF = '{"question": "cut \\ud83d", "answer": "#### 4"}\n{"question": "whole \\ud83d\\ude00", "answer": "#### 6"}\n'


@pytest.fixture(autouse=True)
def _no_progress_bars(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def values(path, **options):
    return [record.value for record in read_records(str(path), **options)]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_reader_reads_every_encoding(tmp_path, encoding, end, packed):
    data = TEXT.replace("\n", end).encode(encoding)
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    path.write_bytes(gzip.compress(data) if packed else data)
    assert load_rows(str(path)).to_list() == ROWS
    assert [prompt for _, prompt in read_prompts(str(path))] == [row["question"] for row in ROWS]
    items, report = load_items(find("gsm8k"), str(path))
    assert [item.row for item in items] == ROWS
    assert not report.dropped
    assert len(Holdout.load(str(path))) == 2


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lines_of_text_end_at_line_feeds_and_carriage_returns_alone(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("one\x0ctwo\u2028three\x85\r\n\n  four\rfive\n".encode(encoding))
    path = tmp_path / "a.txt"
    assert read_prompts(str(path)) == [
        (f"{path}, line 1", "one\x0ctwo\u2028three\x85"),
        (f"{path}, line 3", "  four"),
        (f"{path}, line 4", "five"),
    ]
    assert list(read_lines(str(tmp_path / "a.txt")))[1] == (2, "")


def test_standard_input(monkeypatch):
    for text, prompts in (
        ("\ufeffone\ntwo", ["one", "two"]),
        ('\n{"prompt": "a\u2028b"}\n{"prompt": [3]}', ["a\u2028b", [3]]),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert [prompt for _, prompt in read_prompts("-")] == prompts


@pytest.mark.parametrize(
    "reader", [load_rows, read_prompts, lambda path: load_items(find("gsm8k"), path), Holdout.load]
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_what_is_not_utf8_names_file_and_line(tmp_path, reader, name):
    text = '{"question": "a"}\n\n{"question": "é"}\n' if name == "rows.jsonl" else "question,answer\na,4\né,5\n"
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name}, line 3: not UTF-8 \(byte 0xe9 at "):
        reader(str(tmp_path / name))


def test_half_of_a_surrogate_pair_costs_its_row_alone(tmp_path, run):
    (tmp_path / "rows.jsonl").write_text(HALF)
    path = str(tmp_path / "rows.jsonl")
    rows = load_rows(path, columns={"prompt": "question", "completion": "answer"})
    assert rows[1]["prompt"] == "whole 😀"
    assert "half of a surrogate pair (U+D83D) in 'question'" in rows[0][PROBLEM]
    tokens = run(rows)
    assert [example.row for example in tokens] == [1]
    assert "dropped, half of a surrogate pair (U+D83D) in 'question': 1 (row 0)" in str(tokens.report)
    items, report = load_items(find("gsm8k"), path)
    assert [item.row["question"] for item in items] == ["whole 😀"]
    assert sum(tally.count for tally in report.dropped.values()) == 1
    assert len(Holdout.load(path)) == 1
    # Prompts are given on: the engine fails that request, and all lines are written.
    prompts = [prompt for _, prompt in read_prompts(path)]
    assert prompts == ["cut \ud83d", "whole 😀"]
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    requests = [Request(prompt=prompt) for prompt in prompts]
    write_results(requests, [Result((), Usage(0, 0), "no text"), Result((), Usage(0, 0))], out)
    out.seek(0)
    assert [json.loads(line)["prompt"] for line in out] == ["cut \ud83d", "whole 😀"]
    assert lone_surrogate([{"a": ["\ud83d\ude00"]}]) == "U+D83D", "two halves side by side are no character in Python"


def test_text_stays_text_and_objects_stay_as_they_are(tmp_path):
    rows = [
        {
            "date": "2020-01-01",
            "id": 1,
            "mixed": 4,
            "call": {"a": 2},
            "logps": [0.1, 0.30000000000000004],
            "big": 10**30,
        },
        {"date": "2021-05-06", "id": None, "mixed": "four", "call": {"city": [None, 1, "x"]}, "logps": [], "big": 1},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = load_rows(str(tmp_path / "rows.jsonl")).to_list()
    assert read[0] == rows[0] | {"mixed": "4", "big": str(10**30)}
    assert read[1] == rows[1] | {"big": "1"}
    many = "".join(json.dumps({"a": [i] if i < 9_999 else ["x"]}) + "\n" for i in range(10_001))
    (tmp_path / "many.jsonl").write_text(many)
    assert load_rows(str(tmp_path / "many.jsonl"), "train[9998:]")["a"][:] == [[9998], ["x"], ["x"]]


@pytest.mark.parametrize("levels", [101, 20_000, 300_000])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_deep_rows_are_refused(tmp_path, levels, name):
    deep = '{"a": ' + "[" * levels + "]" * levels + "}"
    (tmp_path / name).write_text(f"[{deep}]" if name == "rows.json" else '{"a": 1}\n' + deep)
    with pytest.raises(DataError, match=rf"{name}.*: nested deeper than 100 levels"):
        load_rows(str(tmp_path / name))
    (tmp_path / name).write_text('{"a": ' + "[" * 98 + '"[[[["' + "]" * 98 + "}")
    assert len(load_rows(str(tmp_path / name))) == 1


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "UNPACKED", 1 << 20)
    line = json.dumps({"a": "0" * 1000}).encode() + b"\n"
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(line * 2000))
    with pytest.raises(DataError, match=r"bomb\.jsonl\.gz: unpacks to more than 1 MiB"):
        load_rows(str(tmp_path / "bomb.jsonl.gz"))
    monkeypatch.setattr(files, "LONGEST_LINE", 1 << 16)
    (tmp_path / "long.jsonl").write_bytes(b" " * (1 << 17))
    with pytest.raises(DataError, match=r"long\.jsonl, line 1: longer than 0 MiB"):
        load_rows(str(tmp_path / "long.jsonl"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt,label,prompt\na,b,c\n", r"a\.csv, line 1: the column 'prompt' stands twice"),
        ("a.csv", 'a,b\n1,2\n"x\ny",2\n1,2,3\n', r"a\.csv, line 5: 3 fields, but the first line names 2 columns"),
        ("a.csv", 'a,b\n1,"2\n', r"a\.csv, line 2: not valid CSV"),
        ("a.csv", "a,b\n", r"a\.csv: holds no rows"),
        ("a.jsonl", '{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', r"a\.jsonl, line 2: the key 'a' stands twice"),
        ("a.jsonl", "\n\n", r"a\.jsonl: holds no rows"),
        ("a.json", "[]", r"a\.json: holds no rows"),
        ("a.json", '[{"a": 1}, 2]', r"a\.json, row 1: a row must be an object"),
        ("a.jsonl.gz", "{}", r"a\.jsonl\.gz: cannot be read: Not a gzipped file"),
    ],
)
def test_mistakes_name_the_file_and_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_rows(str(tmp_path / name))


def test_csv_keeps_line_breaks_in_quotes(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfa,b\r\n"1\n2","007"\r\n\r\nNone,\r\n')
    assert load_rows(str(tmp_path / "a.csv")).to_list() == [{"a": "1\n2", "b": "007"}, {"a": "None", "b": ""}]


def test_files_that_differ_are_named(tmp_path, caplog):
    for name, rows in (("a", [{"p": "1", "q": "2"}]), ("b", []), ("c", [{"p": "3", "q": "4", "extra": 1}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.WARNING):
        rows = load_rows(f"{tmp_path}/*.jsonl")
    assert rows.to_list() == [{"p": "1", "q": "2", "extra": None}, {"p": "3", "q": "4", "extra": 1}]
    assert "b.jsonl holds no rows" in caplog.text
    assert "a.jsonl: no column 'extra', which other files of the set have" in caplog.text
    pq.write_table(pa.table({"p": ["1"], "extra": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"p": ["2"]}), tmp_path / "b.parquet")
    assert load_rows(f"{tmp_path}/*.parquet").to_list() == [{"p": "1", "extra": 1}, {"p": "2", "extra": None}]
    pq.write_table(pa.table({"p": [{"a": 1}]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load_rows(f"{tmp_path}/*.parquet")
    pq.write_table(pa.table([["1"], ["2"]], ["p", "p"]), tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet: the column 'p' stands twice"):
        load_rows(f"{tmp_path}/d.parquet")


def test_broken_lines_cost_an_evaluation_those_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text(TEXT + "{broken\n5\n" + '{"a": ' + "[" * 999 + "]" * 999 + "}\n")
    items, report = load_items(find("gsm8k"), str(tmp_path / "a.jsonl"))
    assert len(items) == 2
    assert sorted(row for tally in report.dropped.values() for row in tally.rows) == [2, 3, 4]
    assert isinstance(report, DropReport)


def test_a_list_is_scanned_once_not_once_a_row(tmp_path, monkeypatch):
    rows, scans = [{"prompt": "é" * 9, "nested": [[i]]} for i in range(50)], []
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    signs = files._signs
    monkeypatch.setattr(files, "_signs", lambda text: scans.append(len(text)) or signs(text))
    assert [record.value for record in files.read_records(str(path))] == rows
    assert len(scans) == 1


def test_only_the_first_line_makes_a_file_a_list(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n[1, 2]\n{"a": 3}\n')
    found = list(files.read_records(str(path), strict=False))
    assert [record.value for record in found] == [{"a": 1}, None, {"a": 3}]
    assert "must be an object" in found[1].problem


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_has_lines_of_every_end_and_keeps_those_in_quotes(tmp_path, end):
    path = tmp_path / "a.csv"
    path.write_bytes(f'prompt,completion{end}p,"a\rb"{end}q,c{end}'.encode())
    assert values(path) == [{"prompt": "p", "completion": "a\rb"}, {"prompt": "q", "completion": "c"}]
    path.write_bytes(f"prompt,completion{end}p,a{end}q,é{end}".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv, line 3: not UTF-8 \(byte 0xe9 at 3\)"):
        values(path)


@pytest.mark.parametrize("text", ['{"a": "x", "id": %s}\n', '[{"a": "x", "id": %s}]\n'])
def test_a_number_of_too_many_digits_is_text(tmp_path, text):
    digits = "9" * 5000
    (tmp_path / "a.jsonl").write_text(text % digits)
    assert values(tmp_path / "a.jsonl") == [{"a": "x", "id": digits}]
    assert load_rows(str(tmp_path / "a.jsonl"))["id"][:] == [digits]


@pytest.mark.parametrize("value", ["-" + "9" * 5000, '[1, {"b": ' + "9" * 5000 + "}]"])
def test_a_number_of_too_many_digits_costs_no_other_row(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(f'{{"a": "x", "id": 1}}\n{{"a": "y", "id": {value}}}\n{{"a": "z"}}\n')
    assert load_rows(str(tmp_path / "a.jsonl"))["a"][:] == ["x", "y", "z"]


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
@pytest.mark.parametrize("answer", ["4", "4, or so"])
def test_other_separators_are_named(tmp_path, run, separator, name, answer):
    (tmp_path / "a.csv").write_text(f"prompt{separator}completion\n2+2?{separator}{answer}\n")
    with pytest.raises(DataError, match=f"the columns look separated by {name}: separate them by commas"):
        run(load_rows(str(tmp_path / "a.csv")))
    with pytest.raises(DataError, match=f"the columns look separated by {name}"):
        load_rows(str(tmp_path / "a.csv"), columns={"prompt": "question"})


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_what_is_no_number_is_no_text_either(tmp_path, run, value):
    row = '{"prompt": "2+2?", "completion": %s}\n'
    for other in ("4", '"4"'):
        (tmp_path / "a.jsonl").write_text(row % value + row % other)
        tokens = run(load_rows(str(tmp_path / "a.jsonl")))
        assert [example.row for example in tokens] == [1]
        assert tokens.report.dropped["empty completion"].rows == [0]
