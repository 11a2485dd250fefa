"""Replies that are labels, and texts in another script, read strictly."""

from __future__ import annotations

import pytest

from smallr.agents.reading import in_script_of, read_label
from smallr.sampling.requests import Sample


@pytest.mark.parametrize(
    ("text", "label", "problem"),
    [
        ("easy", "easy", ""),
        (" **Hard**.\n", "hard", ""),
        ("<think>It is not easy.</think>\nmedium", "medium", ""),
        ("", None, "empty reply"),
        (" \n", None, "empty reply"),
        ("<think>hm</think>", None, "empty reply"),
        ("easy or hard", None, "several labels"),
        ("The rationale is easy.", None, "more than a label"),
        ("einfach", None, "no label"),
        ("简单", None, "no label"),
        ("uneasy", None, "no label"),
    ],
)
def test_labels(text, label, problem):
    assert read_label(Sample(text, "stop"), ("easy", "medium", "hard")) == (label, problem)


def test_scripts():
    assert in_script_of("Zwei und zwei", "How many?")
    assert not in_script_of("Два и два", "How many?")
    assert in_script_of("Два и два, x", "Сколько?")
    assert in_script_of("the angle α is 30 degrees", "How wide is it?"), "a few letters are no language"
    assert in_script_of("2 + 2 = 4", "How many?")
    assert in_script_of("two", "2 + 2 = ?")
