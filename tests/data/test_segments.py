"""Completions as lists of segments, and numbers of segments on tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

import smallr.models
from smallr.data.errors import DataError
from tests.data.tokens import byte_spans, whole

PROMPT = "How many apples are left?\n"
SEGMENTS = [" <QUE> How many apples were there? </QUE>", " <QUE> How many were eaten? </QUE>"]
NUMBERS = [0.25, 0.5, 1.0]


@pytest.fixture(scope="module")
def bpe():
    """The byte-level BPE of the built-in model, which has a chat template."""
    return PreTrainedTokenizerFast.from_pretrained(Path(smallr.models.__file__).parent / "tiny_random")


def reward(run, tokenizer, completions=(SEGMENTS,), numbers=(NUMBERS,), *, prompt=PROMPT, **options):
    row = {"prompt": prompt, "completions": [list(each) for each in completions], "reward": [list(n) for n in numbers]}
    (example,) = run([row], tokenizer, kind="completions", segment_columns=("reward",), **options)
    return example


def test_each_number_lands_on_the_last_token_of_its_segment(run, bpe):
    example = reward(run, bpe)
    (completion,) = example.completions
    alone = [bpe.encode(text, add_special_tokens=False) for text in SEGMENTS]
    # These texts do not merge: the tokens of the whole are those of the segments one by one.
    assert completion.tokens.tolist() == [*alone[0], *alone[1], bpe.eos_token_id]
    expected = np.zeros(len(completion.tokens), np.float32)
    expected[len(alone[0]) - 1], expected[-2], expected[-1] = NUMBERS
    np.testing.assert_array_equal(completion.token_columns["reward"], expected)


def test_without_an_end_token_the_last_numbers_are_added(run, bpe):
    values = reward(run, bpe, end=False).completions[0].token_columns["reward"]
    assert values[-1] == 1.5
    assert np.count_nonzero(values) == 2


def test_a_segment_that_ends_inside_a_token_gives_its_number_to_that_token(run, bpe):
    text = " the number of pages"
    tokens = bpe.encode(text, add_special_tokens=False)
    spans = byte_spans(bpe, tokens)
    cuts = range(1, len(text))
    rows = [{"prompt": PROMPT, "completions": [[text[:cut], text[cut:]]], "reward": [[1.0, 2.0, 4.0]]} for cut in cuts]
    for cut, example in zip(cuts, run(rows, bpe, kind="completions", segment_columns=("reward",)), strict=True):
        first = next(i for i, (start, end) in enumerate(spans) if start < cut <= end)
        expected = np.zeros(len(tokens) + 1)
        np.add.at(expected, [first, len(tokens) - 1, len(tokens)], [1.0, 2.0, 4.0])
        np.testing.assert_array_equal(example.completions[0].token_columns["reward"], expected)


def test_characters_of_several_tokens_and_several_completions(run, bpe):
    example = reward(run, bpe, [[" 🦆", " two"], [" no"]], [[1.0, 2.0, 3.0], [4.0, 5.0]])
    duck = len(bpe.encode(" 🦆", add_special_tokens=False))
    assert duck > 2
    first, second = (completion.token_columns["reward"] for completion in example.completions)
    assert np.flatnonzero(first)[0] == duck - 1
    assert first[first > 0].tolist() == [1.0, 2.0, 3.0]
    assert second[second > 0].tolist() == [4.0, 5.0]


def test_in_a_chat_tokens_are_those_of_the_joined_text(run, bpe):
    example = reward(run, bpe, chat=True)
    (joined,) = run([{"prompt": PROMPT, "completion": "".join(SEGMENTS)}], bpe, chat=True)
    assert whole(example) == whole(joined)
    (completion,) = example.completions
    values, tokens = completion.token_columns["reward"], completion.tokens[completion.scored]
    assert values[values > 0].tolist() == NUMBERS
    ends = [bpe.decode(tokens[: i + 1]).rstrip("\n") for i in np.flatnonzero(values)]
    assert ends[0].endswith("there? </QUE>")
    assert ends[1].endswith("eaten? </QUE>")
    assert np.flatnonzero(values)[-1] == len(values) - 1


@pytest.mark.parametrize(
    ("completions", "numbers", "message"),
    [
        ([SEGMENTS], [[0.5, 1.0]], "column 'reward': 2 numbers for 2 segments; give one for each and one for the end"),
        ([SEGMENTS], [NUMBERS, NUMBERS], "column 'reward': 2 values for 1 completions"),
        ([[" a", ""]], [NUMBERS], "column 'completions': segment 1 of completion 0 is empty"),
        ([[PROMPT, " b"]], [NUMBERS], "column 'completions': the segments begin with the prompt; leave it out"),
    ],
)
def test_errors(run, bpe, completions, numbers, message):
    with pytest.raises(DataError, match=f"row 0, {message}"):
        reward(run, bpe, completions, numbers)


def test_other_completions_and_kinds_have_no_segments(run, bpe):
    with pytest.raises(DataError, match=r"need completions that are lists of texts, found ' a b'"):
        run([{"prompt": "x", "completions": [" a b"], "r": [[1.0]]}], bpe, kind="completions", segment_columns=("r",))
    with pytest.raises(DataError, match="segment_columns: rows of the kind sft have none; use the kind completions"):
        run([{"prompt": "x", "completion": " a"}], bpe, segment_columns=("r",))
