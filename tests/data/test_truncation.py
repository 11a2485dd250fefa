"""A prompt that is too long loses its beginning and nothing else: the example is that of a row with so short a prompt.

The reference takes every end of the prompt as a row of its own, tokenises it with room enough, and measures it.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smallr.data.drops import DropReport
from smallr.data.errors import DataError
from smallr.data.tokenize import TokenizeOptions
from tests.data.conftest import TOY
from tests.data.tokens import byte_spans, whole
from tests.data.toy_tokenizer import build

CUT = {"truncation": "truncate_prompt_left"}
QUESTION = (
    "Tom has 12 apples and buys 7 more. How many apples does he have? Of the above choices, only one is an answer."
)


def size(example, share_prompt=True):
    copies = 1 if share_prompt else len(example.completions)
    return copies * len(example.prefix) + sum(len(completion.tokens) for completion in example.completions)


def same(a, b) -> bool:
    return len(a.completions) == len(b.completions) and all(
        whole(a, s) == whole(b, s) for s in range(len(a.completions))
    )


def ends(text, inside_words=False):
    """The text from each of its tokens on, longest first; by bytes, and a token that begins inside a character left out."""
    raw, found = text.encode(), []
    for start, _ in byte_spans(TOY, TOY(text, add_special_tokens=False)["input_ids"]):
        with contextlib.suppress(UnicodeDecodeError):
            before, end = raw[:start].decode(), raw[start:].decode()
            word = before[-1:].isalnum() and end[:1].isalnum()
            number = (before[-1:].isdigit() and end[:1] in ".,") or (before[-1:] in [*".,"] and end[:1].isdigit())
            if end.strip() and (inside_words or not (word or number)):
                found.append(end.lstrip())
    return found


def longest_that_fits(run, rows, limit, share_prompt=True, **options):
    """The first example, of rows from the longest prompt to the shortest, that fits; made with room enough."""
    made = run(rows, share_prompt=share_prompt, **options)
    return next((example for example in made if size(example, share_prompt) <= limit), None)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("share_prompt", [False, True])
@pytest.mark.parametrize("limit", [24, 38, 60])
def test_pairs_keep_the_longest_end_of_the_prompt_that_fits(run, chat, share_prompt, limit):
    row = {"prompt": QUESTION, "chosen": " 19 apples", "rejected": " no apples. yes"}
    options = {"chat": chat, "share_prompt": share_prompt}
    expected = longest_that_fits(run, [row | {"prompt": end} for end in ends(QUESTION)], limit, **options)
    if expected is None:
        with pytest.raises(DataError, match=f"longer than {limit} tokens: 1"):
            run([row], max_length=limit, **options, **CUT)
        return
    found = run([row], max_length=limit, **options, **CUT)
    assert same(found[0], expected)
    is_long = size(run([row], **options)[0], share_prompt) > limit
    assert (found.report.cut, found.report.dropped) == (int(is_long), {})
    assert (f"prompt shortened from the left to fit {limit} tokens: 1 (row 0)" in str(found.report)) == is_long


@settings(max_examples=10, deadline=None)
@given(st.text("Tom has 12apples\n é😀", min_size=1, max_size=60), st.integers(8, 40))
def test_any_text(run_once, text, limit):
    row = {"prompt": f"{text}?", "completion": " 7 more"}
    for inside_words in (False, True):
        rows = [row, *(row | {"prompt": end} for end in ends(f"{text}?", inside_words))]
        if expected := longest_that_fits(run_once, rows, limit):
            break
    else:
        return
    assert same(run_once([row], max_length=limit, **CUT)[0], expected)


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """`run` of the other tests, for a test with many examples."""
    import datasets

    from smallr.data.tokenize import tokenize

    cache = tmp_path_factory.mktemp("tokens")

    def run(rows, max_length=1000, **options):
        options = TokenizeOptions("sft", max_length, **options)
        return tokenize(datasets.Dataset.from_list(rows), TOY, options, cache=cache)

    return run


def test_neither_words_nor_numbers_are_cut_unless_nothing_else_fits(run):
    row = {"prompt": "He goes 12530.75 km, in 1,024 rounds.", "completion": " 7"}
    found = set()
    for limit in range(8, 40):
        with contextlib.suppress(DataError):
            example = run([row], max_length=limit, **CUT)[0]
            found.add(TOY.decode(example.prefix).split("user\n")[-1].split("<|im_end|>")[0])
    assert {text.split()[0] for text in found} >= {"He", "goes", "km,", "in", "rounds."}
    assert not {"530.75", "0.75", "75", ".75", "024", ",024"} & {text.split()[0] for text in found}
    word = {"prompt": "a" * 60, "completion": " 7"}
    assert 0 < TOY.decode(run([word], max_length=30, **CUT)[0].prefix).count("a") < 60
    # Where words are not set apart by spaces, a prompt begins with any character.
    (example,) = run([{"prompt": "東京" * 20, "completion": " 7"}], max_length=40, **CUT)
    assert 2 < TOY.decode(example.prefix).count("京") < 20


def test_a_chat_loses_its_oldest_turns_whole(run):
    system = {"role": "system", "content": "You count."}
    turns = [
        {"role": role, "content": f"{text} {QUESTION}"}
        for role, text in zip(["user", "assistant"] * 3, "abcdef", strict=True)
    ]
    asked = {"role": "user", "content": "How many?"}

    def row(*messages):
        return {"prompt": [system, *messages], "completion": [{"role": "assistant", "content": "12"}]}

    full = [row(*turns[first:], asked) for first in (0, 2, 4, 6)]
    lengths = [size(run([each])[0]) for each in full]
    assert sorted(lengths, reverse=True) == lengths
    for kept, length in enumerate(lengths):
        found = run([full[0]], max_length=length, **CUT)
        assert same(found[0], run([full[kept]])[0])
    text = TOY.decode(run([full[0]], max_length=lengths[3] - 1, **CUT)[0].prefix)
    head, tail = "<|im_start|>system\nYou count.<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    assert text.startswith(head)
    assert text.endswith(tail)
    assert text.removeprefix(head).removesuffix(tail) in ("many?", "?")


def test_the_beginning_of_the_text_and_soft_tokens_stay(run):
    tokenizer = build(bos=True)
    row = {"prompt": QUESTION, "completion": " 19"}
    (example,) = run([row], tokenizer, 20, soft_tokens=3, **CUT)
    assert example.prefix[:4].tolist() == [-1, -2, -3, tokenizer.bos_token_id]
    assert size(example) == 20
    assert QUESTION.endswith(tokenizer.decode(example.prefix[4:]))


def test_questions_lose_their_beginning(run):
    row = {"question": QUESTION, "rationale": "12 + 7", "answer": "19"}
    for order in ("answer_first", "rationale_first"):
        (example,) = run([row], max_length=45, order=order, **CUT)
        assert same(
            example, longest_that_fits(run, [row | {"question": end} for end in ends(QUESTION)], 45, order=order)
        )
    asked = {"question": QUESTION, "label": 1}
    options = {"kind": "choice", "choices": (" yes", " no")}
    (example,) = run([asked], max_length=30, **options, **CUT)
    assert same(example, longest_that_fits(run, [asked | {"question": end} for end in ends(QUESTION)], 30, **options))


def test_completions_are_never_cut(run):
    rows = [{"prompt": "a", "completion": " apples" * 60}, {"prompt": "b " * 40_000, "completion": " 7"}]
    found = run(rows, max_length=30, **CUT)
    assert [example.row for example in found] == [1]
    assert found.report.dropped["longer than 30 tokens"].rows == [0]
    tokens = np.concatenate([found[0].prefix, found[0].completions[0].tokens])
    assert TOY.decode(tokens).endswith("b b 7<|im_end|>") or TOY.decode(tokens).endswith("b b  7<|im_end|>")
    # Text without a prompt is all completion; log-probs that are given are of the whole prompt.
    pair = {"prompt": QUESTION, "chosen": " yes", "rejected": " no"}
    given = [pair | {"ref_chosen": x, "ref_rejected": x} for x in (None, -1.0)]
    scored = run(given, max_length=20, **CUT)
    assert [example.row for example in scored] == [0]
    with pytest.raises(DataError, match="longer than 10 tokens"):
        run([{"text": QUESTION}], max_length=10, **CUT)


def test_advice_counts_what_would_be_whole(run):
    rows = [{"prompt": "a" * n, "completion": "b"} for n in (10, 10, 300)]
    found = run(rows, max_length=40, chat=False, **CUT)
    assert len(found) == 3
    assert "config.batch.row_length=384 keeps 100% of the examples whole, now 67%" in str(found.report)
    assert DropReport.from_dict(found.report.to_dict()) == found.report
    assert "keeps 100% of the examples, now 67%" in str(run(rows, max_length=40, chat=False).report)


def test_another_policy_is_refused():
    with pytest.raises(DataError, match=r"config.data.truncation=truncate.*must be one of: drop, truncate_prompt_left"):
        TokenizeOptions("sft", 10, truncation="truncate")


def test_advice_counts_rows_that_were_never_tokenised(run):
    rows = [{"prompt": "a" * n, "completion": "b"} for n in (10, 10, 300, 10**6)]
    report = run(rows, max_length=40, chat=False).report
    assert report.dropped[report.too_long].count == 2
    assert "config.batch.row_length=384 keeps 75% of the examples, now 50%" in str(report)
