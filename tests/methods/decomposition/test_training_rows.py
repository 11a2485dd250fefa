"""Rows for the trainer, down to the tokens that get the rewards; pairs and their gaps; scores without a solver."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import load_from_disk
from transformers import PreTrainedTokenizerFast

import smallr.models
from smallr.data.tokenize import TokenizeOptions, tokenize
from smallr.methods.decomposition.metrics import mean_bleu, score_texts
from smallr.methods.decomposition.raw import read_numbered
from smallr.methods.decomposition.rows import load_decompositions
from smallr.methods.decomposition.student import key_of
from smallr.methods.decomposition.training_rows import (
    SETS,
    cloning_rows,
    gap_of,
    ilql_rows,
    pair_rows,
    write_training_sets,
)
from tests.methods.decomposition.shared import QUESTION, RELEASED, decomposition, needs_released

ROWS = [
    decomposition(["How many does he buy?", "How many has he?"], 1.0, [1 / 3, 1.0]),
    decomposition(["Is it so?"], 0.0, [0.0]),
    decomposition(["Who?", "What?"], 0.0, []),
]


def test_cloning_rows():
    rows = cloning_rows(ROWS)
    assert rows[0]["prompt"] == f"{QUESTION}\n"
    assert rows[0]["completion"] == " <QUE> How many does he buy? </QUE> <QUE> How many has he? </QUE>"
    assert len(rows) == 3
    assert cloning_rows(ROWS, filtered=True) == rows[:1]


@pytest.mark.parametrize(
    ("rewards", "expected"), [("full", [[1 / 3, 1.0, 1.0], [0.0, 0.0]]), ("sparse", [[0, 0, 1], [0, 0]])]
)
def test_rewards_land_on_the_last_tokens(tmp_path, rewards, expected):
    rows = ilql_rows(ROWS, rewards)
    assert [row["reward"][0] for row in rows][:2] == expected
    assert len(rows) == {"full": 2, "sparse": 3}[rewards]  # nobody was asked whether the last one is useful
    counts = write_training_sets(tmp_path, {"train": ROWS, "test": ROWS[1:2]})
    assert set(counts) == set(SETS)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(Path(smallr.models.__file__).parent / "tiny_random")
    options = TokenizeOptions("completions", 500, segment_columns=("reward",))
    data = load_from_disk(str(tmp_path / f"ilql_{rewards}"))["train"]
    example = tokenize(data, tokenizer, options, cache=tmp_path / "cache")[0]
    (completion,) = example.completions
    values = completion.token_columns["reward"]
    assert tokenizer.decode(example.prefix) == f"{QUESTION}\n"
    ends = [
        i
        for i, token in enumerate(completion.tokens)
        if tokenizer.decode(completion.tokens[: i + 1]).endswith("</QUE>")
    ]
    assert len(ends) == 2
    wanted = np.zeros(len(completion.tokens), np.float32)
    wanted[[*ends, -1]] = expected[0]
    np.testing.assert_array_equal(values, wanted)


def test_pairs_prefer_the_right_answer_and_then_usefulness():
    a = decomposition(["A?"], 1.0, [0.2])
    b = decomposition(["B?"], 0.0, [0.9])
    c = decomposition(["C?"], 0.0, [0.1])
    same = decomposition(["B?"], 0.0, [0.2])
    other = decomposition(["A?"], 0.0, [0.0], question="Another?")
    wrap = " <QUE> {}? </QUE>".format
    made = [
        (row["chosen"], row["rejected"], row["gap"], row["difference"]) for row in pair_rows([a, b, c, same, other])
    ]
    assert made == [
        (wrap("A"), wrap("B"), "small", -0.7),
        (wrap("A"), wrap("C"), "small", 0.1),
        (wrap("A"), wrap("B"), "small", 0.0),
        (wrap("B"), wrap("C"), "large", 0.8),
        (wrap("B"), wrap("C"), "small", 0.1),
    ]
    assert pair_rows([decomposition(["A?"], 1.0), decomposition(["B?"], 0.0)])[0]["gap"] == "small"
    assert not pair_rows([decomposition(["A?"], 0.0), decomposition(["B?"], 0.0)])  # neither is known to be better


def test_gaps():
    assert [gap_of(x) for x in (-1.0, 0.3, 1 / 3, 0.6, 2 / 3, 1.0)] == [
        "small",
        "small",
        "medium",
        "medium",
        "large",
        "large",
    ]


def test_scores_without_a_solver():
    written, reference = ["How many are left?", "How many are left?", "Why?"], ["How many are left?", "How many boxes?"]
    scores = score_texts(written, reference)
    assert scores.granularity == pytest.approx(1 - 1 / 3)
    assert scores.repeated
    assert score_texts([], reference) == type(scores)(0.0, 0.0, False)
    assert score_texts(["a"], ["a", "b", "c", "d"]).granularity == -2
    assert mean_bleu("a b c d e", "a b c d e") == pytest.approx(1.0)
    for text, other in ((" ".join(written), " ".join(reference)), ("so it is", "it is so now and then"), ("x", "y")):
        assert mean_bleu(text, other) == pytest.approx(plain_bleu(text.split(), other.split()))


def plain_bleu(text, reference):
    """The mean of BLEU-1 to BLEU-4 from its definition; of a text with less than four words the higher orders are 0."""
    precisions = []
    for order in range(1, 5):
        ours, theirs = (Counter(zip(*(words[i:] for i in range(order)), strict=False)) for words in (text, reference))
        precisions.append((ours & theirs).total() / max(ours.total(), 1))
    brevity = math.exp(min(0.0, 1 - len(reference) / len(text)))
    return brevity * np.mean([math.prod(precisions[:order]) ** (1 / order) for order in range(1, 5)])


@needs_released
@pytest.mark.parametrize(("policy", "published"), [("finetune_dist", (0.702, 0.444, 0.390))])
def test_published_scores_come_out_of_the_released_responses(policy, published):
    from smallr.data.sources import load_rows

    reference = {
        key_of(row.question): row.sub_questions
        for row in load_decompositions(str(RELEASED / "qg_test_dataset.jsonl.gz")).rows
    }
    responses = load_rows(str(RELEASED / f"responses_chatgpt_{policy}.jsonl.gz"))
    found = [
        score_texts(read_numbered(row["questions"]), reference[key_of(row["problem"])])
        for row in responses.select_columns(["problem", "questions"])
    ]
    means = [np.mean([getattr(each, name) for each in found]) for name in ("granularity", "bleu", "repeated")]
    np.testing.assert_allclose(means, published, atol=5e-4)
