"""Labelled completions, and the completions of other prompts beside them."""

from __future__ import annotations

import math
from collections import Counter

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallr.data.drops import DropReport
from smallr.data.errors import DataError
from smallr.data.rows import TextRow, mismatched, parse_rows
from smallr.data.tokenize import TokenizeOptions, tokenize
from tests.data import toy_tokenizer


def parse(rows):
    report = DropReport("rows", 100)
    return list(parse_rows(rows, "unpaired", report)), report


def test_labels_are_numbers_and_beta_may_be_given():
    rows, _ = parse(
        [
            {"prompt": "p", "completion": " a", "label": True, "beta": 0.5},
            {"prompt": "p", "completion": " b", "label": "False", "beta": None},
            {"prompt": "p", "completion": " c", "label": 1, "beta": " "},
        ]
    )
    assert [row.columns["label"] for row in rows] == [1, 0, 1]
    assert rows[0].columns["beta"] == 0.5
    assert all(math.isnan(row.columns["beta"]) for row in rows[1:])


def test_a_pair_is_two_rows_of_one_source_row():
    rows, report = parse(
        [{"prompt": "p", "chosen": " a", "rejected": " b"}, {"prompt": "q", "chosen": "", "rejected": "b"}]
    )
    assert [(row.row, row.completions, row.columns["label"]) for row in rows] == [(0, (" a",), 1), (0, (" b",), 0)]
    assert report.total == 3
    assert report.dropped["empty chosen"].rows == [1]


@pytest.mark.parametrize("label", [None, "", " ", float("nan")])
def test_a_row_without_a_label_is_dropped_and_a_column_without_any_is_an_error(tmp_path, label):
    given = [{"prompt": p, "completion": " three", "label": value} for p, value in (("one", 1.0), ("two", 0.0))]
    rows, report = parse([given[0], {**given[0], "label": label}, given[1]])
    assert [row.row for row in rows] == [0, 2]
    assert report.dropped["no label"].rows == [1]
    none = datasets.Dataset.from_list([{**row, "label": label} for row in given])
    with pytest.raises(DataError, match="no row is left to train on") as error:
        tokenize(none, toy_tokenizer.build(), TokenizeOptions("unpaired", 64), cache=tmp_path)
    assert "dropped, no label: 2 (rows 0, 1)" in str(error.value)


@pytest.mark.parametrize("label", ["good", 2, 0.5])
def test_a_label_that_is_none_names_its_place(label):
    with pytest.raises(DataError, match=r"rows, row 0, column 'label': expected true or false"):
        parse([{"prompt": "p", "completion": "a", "label": label}])


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30))
def test_no_completion_meets_its_own_prompt_and_each_is_used_once(prompts):
    rows = [TextRow(i, f"prompt {p}", (f"{p}.{i}",), {}) for i, p in enumerate(prompts)]
    if 2 * max(Counter(prompts).values()) > len(prompts):
        with pytest.raises(DataError, match="completions of other prompts"):
            list(mismatched(rows))
        return
    paired = list(mismatched(rows))
    assert [row.completions[0] for row in paired] == [row.completions[0] for row in rows]
    for row in paired:
        assert row.completions[1].split(".")[0] != row.prompt.removeprefix("prompt ")
    assert sorted(row.completions[1] for row in paired) == sorted(row.completions[0] for row in rows)


def test_with_distinct_prompts_it_is_the_published_shift_by_one():
    paired = list(mismatched([TextRow(i, f"p{i}", (f"c{i}",), {}) for i in range(4)]))
    assert [row.completions for row in paired] == [("c0", "c3"), ("c1", "c0"), ("c2", "c1"), ("c3", "c2")]


def test_an_example_has_its_prompt_once_and_both_completions(tmp_path):
    rows = datasets.Dataset.from_list(
        [
            {"prompt": "one two", "completion": " three", "label": True},
            {"prompt": "two", "completion": " three", "label": False},
            {"prompt": "three", "completion": " one one", "label": True},
        ]
    )
    tokens = tokenize(rows, toy_tokenizer.build(), TokenizeOptions("unpaired", 64), cache=tmp_path)
    assert len(tokens) == 3, "equal texts of two rows are no reason to drop one"
    assert tokens.columns["label"].tolist() == [1, 0, 1]
    first, second, third = ([completion.tokens.tolist() for completion in tokens[i].completions] for i in range(3))
    assert second[1] == first[0]
    assert third[1] == second[0]
    assert first[1] == third[0]
