"""What follows a prompt is found whatever white space stands around it, and what only looks like it is not."""

from __future__ import annotations

import pytest

from smallr.data.repeats import answer_of, continuation, is_sure


@pytest.mark.parametrize(
    ("prompt", "completion", "rest"),
    [
        ("2+2?", "2+2? 4", " 4"),
        ("2+2?\n", "\n 2+2? 4", " 4"),
        ("\n2+2? ", "2+2? 4", "4"),
        ("2+2?", "4", None),
        ("2+2?", "It is 2+2? 4", None),
        (" ", "4", None),
    ],
)
def test_what_follows_a_prompt(prompt, completion, rest):
    assert continuation(prompt, completion) == rest


def test_the_answer_of_a_chat_is_without_its_cue():
    assert answer_of("\n\nAssistant: 4 ") == "4 "
    assert answer_of("4") == "4"


def test_a_row_alone_is_sure_of_long_prompts_and_of_those_that_end():
    assert is_sure("2+2?", [" 4", "5"])
    assert is_sure("the sum is", [" 4"])
    assert not is_sure("the sum is", [" 4", "olated"])
    assert not is_sure("Hello", [" there"])
    assert not is_sure("2+2?", [" 4", " "])
