"""Rationale rows in both orders, choice rows, soft tokens in front of prompts, and separators within texts."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from smallr.data.batch import ROLE_ANSWER, ROLE_RATIONALE, soft_ids
from smallr.data.chat import Renderer, separator
from smallr.data.encode import Encoder
from smallr.data.errors import DataError
from smallr.data.orders import FORMATS
from smallr.data.packing import PackingPlan, RowShape, Sizes
from smallr.data.pipeline import assemble
from smallr.data.tokenize import TokenizeOptions
from tests.data.conftest import TOY
from tests.data.tokens import text_by_role
from tests.data.toy_tokenizer import build

ROW = {"question": "How many?", "answer": "19", "rationale": "12 and 7 more."}
MARKED = {
    "answer_first": "[a] {question} ### {answer} --> {rationale}",
    "rationale_first": "[r] {question} ### {rationale} --> {answer}",
}


def test_a_separator_in_the_part_that_it_ends_is_refused_and_counted(run):
    """A decoder that stops at the separator, or a reader that splits there, would cut the part short."""
    rows = [ROW, {**ROW, "answer": "a --> b"}, {**ROW, "rationale": "12 --> 19"}]
    first = run(rows, order="answer_first")
    assert first.rows.tolist() == [0, 2]
    assert first.report.dropped["the separator '-->' occurs in the answer"].rows == [1]
    second = run(rows, order="rationale_first")
    assert second.rows.tolist() == [0, 1]  # behind the separator it does no harm
    assert second.report.dropped["the separator '-->' occurs in the rationale"].rows == [2]
    alone = run([ROW, {**ROW, "answer": "a --> b", "rationale": None}], order="rationale_first")
    assert alone.report.dropped["the separator '-->' occurs in the answer"].rows == [1]
    other = run(rows, order="answer_first", formats={"answer_first": "{question}: {answer}\n\n{rationale}"})
    assert len(other) == 3
    assert separator("{question}: {answer}\n\n{rationale}") == "\n\n"


def test_both_orders_make_two_examples_of_a_row_each_with_its_own_soft_prompt(run):
    rows = [ROW, {**ROW, "rationale": None}]
    tokens = run(rows, order="both", soft_tokens=3)
    assert tokens.rows.tolist() == [0, 0, 1]
    assert tokens.columns["order"].tolist() == [0, 1, 0]  # a row without a rationale answers first alone
    assert (tokens.report.total, tokens.report.kept) == (3, 3)
    assert [example.prefix[:3].tolist() for example in tokens] == [[-1, -2, -3], [-4, -5, -6], [-1, -2, -3]]
    for example, order in zip(tokens, ("answer_first", "rationale_first"), strict=False):
        (plain,) = run([ROW], order=order)
        assert example.prefix[3:].tolist() == plain.prefix.tolist()
        assert example.completions[0].tokens.tolist() == plain.completions[0].tokens.tolist()
        assert example.completions[0].roles.tolist() == plain.completions[0].roles.tolist()


@pytest.mark.parametrize("is_chat", [True, False])
def test_without_soft_prompts_both_orders_need_a_mark(run, is_chat):
    with pytest.raises(DataError, match="nothing would tell the model which order"):
        TokenizeOptions("rationale", 99, chat=is_chat, order="both")
    behind = {"answer_first": "{question} [a] ### {answer} --> {rationale}"}
    if is_chat:  # what stands behind the question is no part of a chat
        with pytest.raises(DataError, match=r"before {question}"):
            TokenizeOptions("rationale", 99, chat=True, order="both", formats=behind)
    else:
        TokenizeOptions("rationale", 99, order="both", formats=behind)
    tokens = run([ROW], chat=is_chat, order="both", formats=MARKED)
    assert ["[a] How many?" in TOY.decode(example.prefix) for example in tokens] == [True, False]
    assert "[r] How many?" in TOY.decode(tokens[1].prefix)


@pytest.mark.parametrize("is_chat", [True, False])
def test_the_prompt_of_inference_is_that_of_training(run, is_chat):
    renderer, encoder = Renderer(TOY, chat=is_chat, formats=MARKED), Encoder(TOY)
    for example, order in zip(run([ROW], chat=is_chat, order="both", formats=MARKED), FORMATS, strict=True):
        (ids,) = encoder.prompts([renderer.prompt(ROW["question"], order)], is_chat=is_chat)
        assert ids == example.prefix.tolist()
    (example,) = run(
        [{"question": "How many?", "label": 1}], chat=is_chat, kind="choice", choices=("a", "b"), soft_tokens=2
    )
    (ids,) = encoder.prompts([renderer.choice_prompt("How many?")], is_chat=is_chat)
    assert example.prefix.tolist() == [-1, -2, *ids]


def test_choice_rows(run):
    rows = [{"question": f"{i}?", "label": i % 2} for i in range(3)] + [{"question": " ", "label": 1}]
    tokens = run(rows, kind="choice", choices=("yes", "no"), prompt="Q: {question} >")
    assert tokens.columns["label"].tolist() == [0, 1, 0]
    assert TOY.decode(tokens[1].prefix) == "Q: 1? >"
    assert tokens.report.dropped["empty question"].rows == [3]
    expected = [TOY("yes")["input_ids"][0], TOY("no")["input_ids"][0]]
    assert [completion.tokens.tolist() for completion in tokens[0].completions] == [[id] for id in expected]
    assert tokens.num_scored.tolist() == [[1, 1]] * 3
    with pytest.raises(DataError, match="begin with different tokens"):
        run(rows, kind="choice", choices=("12", "1"))
    with pytest.raises(DataError, match="expected true or false, found a str 'maybe'"):
        run([{"question": "?", "label": "maybe"}], kind="choice", choices=("a", "b"))
    with pytest.raises(DataError, match=r"must hold {question} once"):
        TokenizeOptions("choice", 9, prompt="?", choices=("a", "b"))
    with pytest.raises(DataError, match="expected two texts"):
        TokenizeOptions("choice", 9)


def test_soft_tokens_stand_in_front_and_count(run):
    assert soft_ids(2, 3).tolist() == [-7, -8, -9]
    (plain,) = run([ROW])
    length = len(plain.prefix) + len(plain.completions[0].tokens)
    tokens = run([ROW], soft_tokens=5, max_length=length + 5)
    assert tokens.report.longest == length + 5
    with pytest.raises(DataError, match=f"longer than {length + 4} tokens"):
        run([ROW], soft_tokens=5, max_length=length + 4)
    batch = assemble([[0, 0]], tokens, RowShape(2 * length + 10, 2 * int(tokens.num_scored[0, 0]), 2), {})
    first = batch.tokens[0, : length + 5]
    np.testing.assert_array_equal(first[:5], [-1, -2, -3, -4, -5])
    np.testing.assert_array_equal(batch.tokens[0, length + 5 :], first)
    np.testing.assert_array_equal(batch.positions[0, : length + 5], np.arange(length + 5))
    assert batch.horizon[0, 0] == length + 5  # the second example does not see the first one's vectors


TEXTS = [
    # The answer stands in the rationale too, where its characters join others in one token.
    {"question": "q", "answer": "12", "rationale": "1 2 is no 12345 but 12."},
    {"question": "12", "answer": "1", "rationale": "11 12 1"},
    {"question": "a ### b", "answer": "b", "rationale": "abab ### b"},
]


@pytest.mark.parametrize("order", ["answer_first", "rationale_first"])
@pytest.mark.parametrize("is_chat", [True, False])
def test_roles_are_places_not_findings(run, order, is_chat):
    """An answer that also occurs in question, rationale or template is found by where it was written."""
    for row, example in zip(TEXTS, run(TEXTS, chat=is_chat, order=order), strict=True):
        parts = {role: text_by_role(TOY, example, role) for role in (ROLE_ANSWER, ROLE_RATIONALE)}
        ends = [" -->", TOY.eos_token] if order == "answer_first" else [TOY.eos_token, " -->"]
        assert parts[ROLE_ANSWER].strip() == row["answer"] + ends[0]
        assert parts[ROLE_RATIONALE].strip() == row["rationale"] + ends[1]


def test_roles_survive_packing_and_truncation(run):
    """In packed rows every target keeps its role; an example that is too long goes whole, not in part."""
    rows = [{**ROW, "answer": str(i), "rationale": f"{i} " * (i + 1)} for i in range(9)]
    long = max(len(e.prefix) + len(e.completions[0].tokens) for e in run(rows))
    tokens = run(rows, max_length=long - 1)
    assert tokens.report.dropped[f"longer than {long - 1} tokens"].count == len(rows) - len(tokens) > 0
    sizes = Sizes.from_lengths(tokens.prefix_lengths, tokens.completion_lengths, tokens.num_scored)
    plan = PackingPlan(sizes, 2, 2 * long)
    found = {}
    for step in range(plan.num_steps(1)):
        batch = assemble(plan.step(step), tokens, plan.shape, {})
        per_row = batch.example.shape[1]
        for r, p in zip(*np.nonzero(batch.example >= 0), strict=True):
            member = (batch.completion[r] == p) & (batch.role[r] > 0)
            assert per_row > p
            found[int(batch.example[r, p])] = {
                role: TOY.decode(batch.target[r][member & (batch.role[r] == role)])
                for role in (ROLE_ANSWER, ROLE_RATIONALE)
            }
    for index, example in enumerate(tokens):
        row = rows[example.row]
        assert found[index][ROLE_ANSWER] == f" {row['answer']} -->"
        assert found[index][ROLE_RATIONALE] == f" {row['rationale'].strip()}{TOY.eos_token}"


def test_formats_are_part_of_what_tokens_are_filed_under(run):
    tokens = [
        run(Dataset.from_list([ROW]), formats=formats) for formats in ({}, {"answer_first": MARKED["answer_first"]})
    ]
    assert tokens[0].fingerprint != tokens[1].fingerprint
    with pytest.raises(DataError, match="'answer' must be one of: answer_first, rationale_first"):
        TokenizeOptions("rationale", 9, formats={"answer": "{question}"})


def test_special_tokens_that_the_tokenizer_adds(run):
    tokenizer = build(bos=True, eos=True)
    (example,) = run([ROW], tokenizer, soft_tokens=2)
    assert example.prefix[2] == tokenizer.bos_token_id
    (ids,) = Encoder(tokenizer).prompts(
        [Renderer(tokenizer, chat=False).prompt("How many?", "answer_first")], is_chat=False
    )
    assert ids == example.prefix[2:].tolist()  # no EOS behind what is to be continued
