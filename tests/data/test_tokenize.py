"""Tokens are those of the template, roles are those of the characters, and nothing is dropped in silence.

The reference for roles is independent of the offsets that the code uses: tokens are turned back into their bytes, and
byte positions are compared with those of the rendered parts.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from smallr.data.batch import ROLE_ANSWER, ROLE_RATIONALE
from smallr.data.chat import Renderer
from smallr.data.encode import Encoder, to_example
from smallr.data.errors import DataError
from smallr.data.orders import FORMATS
from smallr.data.rows import RationaleRow, TextRow
from smallr.data.sources import load_rows
from smallr.data.tokenize import TokenizeOptions
from tests.data.conftest import TOY
from tests.data.tokens import expected_roles, size, text_by_role, whole
from tests.data.toy_tokenizer import CHATML, build

SHARED = Path(__file__).parents[3] / "shared" / "data"
EOS = TOY.eos_token

CONVERSATIONS = [
    [("user", "How many?"), ("assistant", "12 apples")],
    [("system", "You count."), ("user", "How many?"), ("assistant", "12\n\nI think.")],
    [("user", "a"), ("assistant", "é 😀 ü"), ("user", "  b  "), ("assistant", "  4 \n")],
    [("user", "x" * 40), ("assistant", "<|im_end|> is no secret"), ("user", "1234"), ("assistant", "y")],
    [("system", ""), ("user", "a\n"), ("assistant", "\n\n7"), ("tool", "z"), ("assistant", "8")],
]


def chat(pairs):
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.fixture(params=["toy", "smollm2"])
def tokenizer(request):
    return TOY if request.param == "toy" else request.getfixturevalue("smollm2_tokenizer")


# --- chats ---


@pytest.mark.slow
@pytest.mark.parametrize("pairs", CONVERSATIONS)
def test_tokens_are_those_of_apply_chat_template(tokenizer, run, pairs):
    (example,) = run([{"messages": chat(pairs)}], tokenizer)
    expected = tokenizer.apply_chat_template(chat(pairs), tokenize=True, return_dict=False)
    assert whole(example)[0] == expected
    assert tokenizer.decode(whole(example)[0]) == tokenizer.apply_chat_template(chat(pairs), tokenize=False)


@pytest.mark.slow
@pytest.mark.parametrize("pairs", CONVERSATIONS)
def test_scored_are_all_assistant_turns_with_their_end(tokenizer, run, pairs):
    (example,) = run([{"messages": chat(pairs)}], tokenizer)
    tokens, roles = whole(example)
    spans, text = [], ""
    full = tokenizer.apply_chat_template(chat(pairs), tokenize=False)
    for i, (role, content) in enumerate(pairs):
        if role == "assistant":
            before = tokenizer.apply_chat_template(chat(pairs[:i]), tokenize=False, add_generation_prompt=True)
            assert full.startswith(before + content + "<|im_end|>")
            spans.append((size(before), size(before + content + "<|im_end|>"), ROLE_ANSWER))
            text += content + "<|im_end|>"
    assert roles == expected_roles(tokenizer, tokens, spans)
    scored = text_by_role(tokenizer, example, ROLE_ANSWER)
    # A token of "\n\n" that holds the end of the prompt belongs to the completion.
    assert scored.replace("\n", "") == text.replace("\n", "")
    assert tokens[-1] != tokenizer.eos_token_id
    assert roles[-1] == 0  # the line break that the template writes behind the last turn


texts = st.text(st.sampled_from("ab 1.\né😀#>-<|"), min_size=1, max_size=12).filter(lambda text: text.strip())


@settings(max_examples=60, deadline=None)
@given(prompt=texts, chosen=texts, rejected=texts, is_chat=st.booleans())
def test_any_pair_is_rendered_faithfully(prompt, chosen, rejected, is_chat):
    renderer = Renderer(TOY, chat=is_chat)
    sides = Encoder(TOY)(renderer.text_row(TextRow(0, prompt, (chosen, rejected), {})))
    example = to_example(sides, {}, 0)
    opening = prompt
    if is_chat:
        opening = TOY.apply_chat_template(chat([("user", prompt)]), tokenize=False, add_generation_prompt=True)
    if example is None:
        assert not is_chat
        return
    for side, completion in enumerate((chosen, rejected)):
        tokens, roles = whole(example, side)
        text = opening + completion + EOS + ("\n" if is_chat else "")
        assert TOY.decode(tokens) == text
        assert tokens == TOY(opening + completion, add_special_tokens=False)["input_ids"] + (
            TOY("<|im_end|>\n")["input_ids"] if is_chat else [TOY.eos_token_id]
        )
        spans = [(size(opening), size(opening + completion + EOS), ROLE_ANSWER)]
        assert roles == expected_roles(TOY, tokens, spans)
    first_scored = [len(example.prefix) + int(np.argmax(completion.roles > 0)) for completion in example.completions]
    a, b = (whole(example, side)[0] for side in (0, 1))
    prompts = min(first_scored)
    common = next((i for i in range(prompts) if a[i] != b[i]), prompts)
    assert len(example.prefix) == common >= 1


def test_pair_with_sides_that_straddle_differently(run):
    """Two line breaks are one token: the rejected side takes the line break that ends the prompt with it."""
    (example,) = run([{"prompt": "How many?", "chosen": "12", "rejected": "\n7", "gap": "small"}], chat=True)
    chosen, rejected = example.completions
    assert TOY.decode(example.prefix).endswith("<|im_start|>assistant")
    assert TOY.convert_ids_to_tokens(chosen.tokens[:2].tolist()) == ["Ċ", "1"]
    assert chosen.roles.tolist() == [0, 1, 1, 1, 0]
    assert TOY.convert_ids_to_tokens(rejected.tokens[:2].tolist()) == ["ĊĊ", "7"]
    assert rejected.roles.tolist() == [1, 1, 1, 0]
    assert example.columns["gap"] == 0
    assert math.isnan(example.columns["beta"])


def test_plain_strings_in_the_template_are_the_chat(tokenizer, run):
    texts = {"prompt": "How many?", "chosen": "12", "rejected": "7"}
    chats = {"prompt": chat([("user", "How many?")]), "chosen": chat([("assistant", "12")])}
    chats["rejected"] = chat([("assistant", "7")])
    (a,), (b,) = run([texts], tokenizer, chat=True), run([chats], tokenizer, chat=False)
    assert whole(a) == whole(b)
    assert whole(a, 1) == whole(b, 1)
    assert len(a.prefix) == len(whole(a)[0]) - 4  # "1", "2", EOS, line break
    assert a.completions[1].roles.tolist() == [1, 1, 0]


def test_pad_that_is_eos_hides_no_eos(tokenizer, run):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    for options in ({"chat": True}, {"chat": False}):
        (example,) = run([{"prompt": "How many?", "completion": "12"}], tokenizer, **options)
        (completion,) = example.completions
        scored = completion.tokens[completion.roles > 0]
        assert scored[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(scored) == "12" + tokenizer.eos_token


# --- plain text ---


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (False, True), (True, True)])
def test_plain_text_has_bos_where_the_tokenizer_puts_it_and_one_eos(run, bos, eos):
    tokenizer = build(bos=bos, eos=eos)
    (example,) = run([{"prompt": "How many?", "completion": " apples"}], tokenizer)
    added = [tokenizer.bos_token_id] if bos else []
    ids = tokenizer("How many? apples", add_special_tokens=False)["input_ids"]
    assert whole(example)[0] == [*added, *ids, tokenizer.eos_token_id]
    assert tokenizer.decode(example.prefix) == ("<|startoftext|>" if bos else "") + "How many?"
    assert example.completions[0].roles.tolist() == [1] * len(example.completions[0].tokens)


def test_bos_alone_is_a_prefix(run):
    (example,) = run([{"prompt": "a", "completion": "n"}], build(bos=True))
    assert TOY.tokenize("an") == ["an"]  # so that the prompt has no token of its own
    assert len(example.prefix) == 1
    with pytest.raises(DataError, match=r"no token of the prompt stands before the completion: 1 \(row 0\)"):
        run([{"prompt": "a", "completion": "n"}])


def test_implicit_prompt(run):
    (example,) = run([{"chosen": "Q: x A: yes", "rejected": "Q: x A: no"}])
    assert TOY.decode(example.prefix) == "Q: x A:"
    assert [TOY.decode(completion.tokens) for completion in example.completions] == [" yes" + EOS, " no" + EOS]


# --- templates ---


def test_messages_without_a_template(run):
    tokenizer = build(template=None)
    row = {"prompt": "p", "completion": chat([("assistant", "c")])}
    with pytest.raises(DataError, match=r"chat messages: .* no chat template. Take the instruct model's tokenizer"):
        run([row], tokenizer)
    with pytest.raises(DataError, match=r"chat=True: .* no chat template"):
        run([{"prompt": "p", "completion": "c"}], tokenizer, chat=True)
    assert len(run([{"prompt": "ab", "completion": "c"}], tokenizer)) == 1


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (CHATML.replace("{% if add_g", "{{ messages | length }}{% if add_g"), "writes the prompt differently once"),
        ("{{ messages | length }}" + CHATML, "writes the prompt differently once an answer follows"),
        (CHATML.replace("message['content']", "message['content'] | upper"), "rewrites the completion"),
        (CHATML.replace("<|im_end|>", "END"), "does not end the assistant's turn with a special token"),
        (CHATML + "{{ raise_exception('no tools here') }}", "refuses the conversation: no tools here"),
    ],
)
def test_templates_that_cannot_be_scored_exactly(run, template, reason):
    row = {"messages": chat(CONVERSATIONS[0])}
    with pytest.raises(DataError, match=rf"no row is left to train on\n(.*\n)*.*{reason}.*: 2 \(rows 0, 1\)"):
        run([row, row], build(template=template))


def test_template_text_behind_the_end_of_a_turn_is_kept_and_not_scored(run):
    tail = CHATML.replace(
        "{% if add_generation_prompt",
        "{% if not add_generation_prompt %}<|startoftext|>{% endif %}{% if add_generation_prompt",
    )
    tokenizer = build(template=tail)
    pairs = CONVERSATIONS[0]
    (example,) = run([{"messages": chat(pairs)}], tokenizer)
    assert whole(example)[0] == tokenizer.apply_chat_template(chat(pairs), tokenize=True, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(example.completions[0].tokens[-3:].tolist()) == [EOS, "Ċ", "<|startoftext|>"]
    assert example.completions[0].roles[-3:].tolist() == [1, 0, 0]


def test_end_of_turn_that_swallows_white_space(run):
    """Some special tokens strip what follows them: the token then reaches beyond the end of the turn."""
    definition = json.loads(TOY.backend_tokenizer.to_str())
    for token in definition["added_tokens"]:
        token["rstrip"] = token["content"] == EOS
    backend = Tokenizer.from_str(json.dumps(definition))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=AddedToken(EOS, rstrip=True, special=True))
    tokenizer.chat_template = CHATML
    (example,) = run([{"messages": chat(CONVERSATIONS[0])}], tokenizer)
    assert whole(example)[0] == tokenizer.apply_chat_template(chat(CONVERSATIONS[0]), return_dict=False)
    assert example.completions[0].tokens[-1] == tokenizer.eos_token_id
    assert set(example.completions[0].roles) == {ROLE_ANSWER}


@pytest.mark.parametrize("answer", ["m", "a", "channel", "think", "end", "12"])
def test_answers_that_are_found_in_the_template_itself(run, answer):
    """Some templates write a header, or an empty thought, between what opens the turn and the answer."""
    for header in ("<|im_start|>channel<|startoftext|>", "<think>\n\n</think>\n\n"):
        template = CHATML.replace(
            "message['content']", f"('{header}' if message.role == 'assistant' else '') + message['content']"
        )
        tokenizer = build(template=template)
        pairs = [("user", answer), ("assistant", answer), ("user", answer + answer), ("assistant", answer)]
        (example,) = run([{"messages": chat(pairs)}], tokenizer)
        assert text_by_role(tokenizer, example, ROLE_ANSWER) == (header + answer + EOS) * 2


def test_template_that_strips_the_content(run):
    tokenizer = build(template=CHATML.replace("message['content']", "message['content'] | trim"))
    (example,) = run([{"messages": chat([("user", " a "), ("assistant", "\n b \n")])}], tokenizer)
    assert text_by_role(tokenizer, example, ROLE_ANSWER) == "b" + EOS


# --- rationale rows ---

RATIONALE = {"question": "How many?", "answer": "19", "rationale": "12 and 7 more."}


@pytest.mark.parametrize(
    ("order", "answer", "rationale"),
    [
        ("answer_first", "19 -->", " 12 and 7 more.<|im_end|>"),
        ("rationale_first", " 19<|im_end|>", "12 and 7 more. -->"),
    ],
)
@pytest.mark.parametrize("is_chat", [True, False])
def test_rationale_roles(tokenizer, run, order, answer, rationale, is_chat):
    (example,) = run([RATIONALE], tokenizer, chat=is_chat, order=order)
    answer_first = order == "answer_first"
    target = answer + rationale if answer_first else rationale + answer
    opening = "How many? ###"
    if is_chat:
        opening = tokenizer.apply_chat_template(
            chat([("user", "How many?")]), tokenize=False, add_generation_prompt=True
        )
    elif answer_first:  # the space before a part belongs to it
        answer, target = " " + answer, " " + target
    else:
        rationale, target = " " + rationale, " " + target
    tokens, roles = whole(example)
    assert tokenizer.decode(tokens) == opening + target + ("\n" if is_chat else "")
    assert text_by_role(tokenizer, example, ROLE_ANSWER) == answer
    assert text_by_role(tokenizer, example, ROLE_RATIONALE) == rationale
    assert tokenizer.decode(example.prefix) == opening
    if is_chat:
        messages = chat([("user", "How many?"), ("assistant", target.removesuffix(EOS))])
        assert tokens == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    # Every token of the target has exactly one role: NLL_y + NLL_r is the NLL of the target.
    target_roles = roles[len(example.prefix) : len(roles) - is_chat]
    assert set(target_roles) == {ROLE_ANSWER, ROLE_RATIONALE}
    assert np.count_nonzero(np.diff(target_roles)) == 1


@settings(max_examples=60, deadline=None)
@given(question=texts, answer=texts, rationale=texts, is_chat=st.booleans(), order=st.sampled_from(sorted(FORMATS)))
def test_any_rationale_row_has_roles_by_characters(question, answer, rationale, is_chat, order):
    question, answer, rationale = question.strip(), answer.strip(), rationale.strip()
    assume("-->" not in (answer if order == "answer_first" else rationale))
    renderer = Renderer(TOY, chat=is_chat)
    (side,) = Encoder(TOY)(renderer.rationale_row(RationaleRow(0, question, answer, rationale), order))
    parts = [(answer, ROLE_ANSWER), (rationale, ROLE_RATIONALE)]
    (first, first_role), (second, second_role) = parts if order == "answer_first" else parts[::-1]
    opening = question + " ###"
    if is_chat:
        opening = TOY.apply_chat_template(chat([("user", question)]), tokenize=False, add_generation_prompt=True)
    cut = opening + ("" if is_chat else " ") + first + " -->"
    end = cut + " " + second + EOS
    assert TOY.decode(side.tokens) == end + ("\n" if is_chat else "")
    spans = [(size(opening), size(cut), first_role), (size(cut), size(end), second_role)]
    assert side.roles.tolist() == expected_roles(TOY, side.tokens.tolist(), spans)


@pytest.mark.parametrize("order", ["answer_first", "rationale_first"])
def test_a_row_without_rationale_keeps_its_answer(run, order):
    tokens = run([RATIONALE, {**RATIONALE, "rationale": None}], order=order)
    assert text_by_role(TOY, tokens[1], ROLE_ANSWER) == " 19" + EOS
    assert text_by_role(TOY, tokens[1], ROLE_RATIONALE) == ""
    assert tokens.report.notes["no rationale: answer loss only"].rows == [1]


def test_own_format(run):
    (example,) = run([RATIONALE], formats={"answer_first": "Q: {question}\nA: {answer}\nWhy: {rationale}\nDone."})
    assert TOY.decode(example.prefix) == "Q: How many?\nA:"
    assert text_by_role(TOY, example, ROLE_ANSWER) == " 19\nWhy:"
    assert text_by_role(TOY, example, ROLE_RATIONALE) == " 12 and 7 more.\nDone." + EOS
    (example,) = run(
        [RATIONALE], chat=True, formats={"answer_first": "Q: {question}\nA: {answer}\nWhy: {rationale}\nDone."}
    )
    assert "<|im_start|>user\nQ: How many?<|im_end|>" in TOY.decode(example.prefix)
    assert text_by_role(TOY, example, ROLE_ANSWER) == "19\nWhy:"


# --- options, limits, reports ---


def test_wrong_options():
    with pytest.raises(
        DataError,
        match=r"config\.data\.kind=rationales: must be one of: preference, unpaired, sft, completions, rationale, choice; did",
    ):
        TokenizeOptions("rationales", 10)
    with pytest.raises(
        DataError,
        match=r"config\.data\.order=answer-first: must be one of: answer_first, rationale_first, both; did you",
    ):
        TokenizeOptions("rationale", 10, order="answer-first")
    with pytest.raises(DataError, match="max_length 1 leaves no room"):
        TokenizeOptions("sft", 1)
    for wrong in ("{question} {answer}", "{answer} {question} {rationale}", "{question}{answer}{answer}", "{question"):
        with pytest.raises(DataError, match=r"^format '{"):
            TokenizeOptions("rationale", 10, formats={"answer_first": wrong})
    with pytest.raises(DataError, match="begins with the answer, but order is rationale_first"):
        TokenizeOptions("rationale", 10, formats={"rationale_first": FORMATS["answer_first"]})


def test_tokenizers_that_cannot_be_used(run):
    tokenizer = build()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no EOS token"):
        run([{"prompt": "ab", "completion": "c"}], tokenizer)

    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="Slow gives no offsets of characters; use a fast tokenizer"):
        run([{"prompt": "ab", "completion": "c"}], Slow())


def test_over_long_examples_are_dropped_whole(run):
    """Prompt of 10, sides of 5 + EOS and 1 + EOS: 18 tokens shared, 28 with the prompt in each completion."""
    row = {"prompt": "1" * 10, "chosen": "2" * 5, "rejected": "3"}
    short = {**row, "prompt": "1"}
    tokens = run([short, row, row], max_length=18)
    assert [example.row for example in tokens] == [0, 1, 2]
    assert (tokens.report.longest, tokens.report.longest_row) == (18, 1)
    tokens = run([short, row, row], max_length=17)
    assert [example.row for example in tokens] == [0]
    assert "longest example 18 tokens (row 1), limit 17" in str(tokens.report)
    assert "dropped, longer than 17 tokens: 2 (rows 1, 2)" in str(tokens.report)
    assert len(run([short, row], max_length=28, share_prompt=False)) == 2
    assert len(run([short, row], max_length=27, share_prompt=False)) == 1


def test_sides_equal_after_the_template(run):
    tokenizer = build(template=CHATML.replace("message['content']", "message['content'] | trim"))
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    tokens = run([row, {**row, "rejected": "a "}], tokenizer, chat=True)
    assert tokens.report.dropped["chosen equal to rejected"].rows == [1]


def test_no_row_left_shows_the_counts(run):
    rows = [{"prompt": "", "chosen": "a", "rejected": "b"}, {"prompt": "p" * 99, "chosen": "a", "rejected": "b"}]
    with pytest.raises(DataError) as error:
        run([*rows, rows[0]], max_length=20)
    assert "no row is left to train on\nrows: 3 rows, 0 kept; longest example " in str(error.value)
    assert "dropped, empty prompt: 2 (rows 0, 2)" in str(error.value)
    assert "dropped, longer than 20 tokens: 1 (row 1)" in str(error.value)


def test_missing_columns(run):
    with pytest.raises(DataError, match="missing 'rejected', present prompt, chosen, rejects; did you mean 'rejects'"):
        run([{"prompt": "p", "chosen": "a", "rejects": "b"}])


def test_columns_beside_those_of_the_kind_do_not_matter(run):
    row = {"prompt": "pq", "chosen": "a", "rejected": "b", "beta": 0.5}
    tokens = run([{**row, "id": "x"}])
    assert tokens.fingerprint == run([{**row, "time": 3}]).fingerprint
    assert tokens[0].columns == {"beta": 0.5, "gap": -1.0}


# --- real rows ---


def need(path):
    if not (SHARED / path).exists():
        pytest.skip(f"{path} is not in ../shared/data")
    return str(SHARED / path)


@pytest.mark.slow
def test_real_rationales(tokenizer, run):
    path = need("teacher/palm/cqa_train.jsonl.gz")
    rows = load_rows(path, "train[:300]", {"rationale": "palm_rationale"})
    for order in FORMATS:
        tokens = run(rows, tokenizer, chat=True, order=order)
        assert tokens.report.total == 300
        for example in tokens:
            row = rows[example.row]
            parts = {role: text_by_role(tokenizer, example, role) for role in (ROLE_ANSWER, ROLE_RATIONALE)}
            end = EOS if order == "rationale_first" else " -->"
            assert parts[ROLE_ANSWER].strip() == row["answer"].strip() + end
            assert row["rationale"].strip() in parts[ROLE_RATIONALE]


def test_real_chat_pairs(tokenizer, run):
    path = need("preference/llamafactory_demo/dpo_en_demo.json.gz")
    rows = load_rows(path, "train[:40]", {"prompt": "conversations"})
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    tokens = run(rows, tokenizer, max_length=100_000)
    assert len(tokens) + sum(tally.count for tally in tokens.report.dropped.values()) == 40
    assert len(tokens) >= 38
    for example in tokens:
        row = rows[example.row]
        for side, name in enumerate(("chosen", "rejected")):
            messages = [*row["prompt"], row[name]]
            messages = [{"role": roles[m["from"]], "content": m["value"]} for m in messages]
            assert whole(example, side)[0] == tokenizer.apply_chat_template(messages, return_dict=False)
            assert text_by_role(tokenizer, example, ROLE_ANSWER, side).endswith(row[name]["value"] + EOS)
