"""The tokenizer of tiny-random is SmolLM2's with fewer merges: what holds of SmolLM2's chats holds of its."""

from __future__ import annotations

import json

import pytest

from smallr.models.loading import open_model
from tests.models import tiny_tokenizer

CHAT = [
    {"role": "user", "content": "Is 12 + 34 = 46? Ünïcödé, code: `x  = y`\n\tand 世界."},
    {"role": "assistant", "content": "Yes, B."},
]


@pytest.fixture(scope="module")
def tiny():
    return open_model("tiny-random").tokenizer()


@pytest.mark.slow
def test_the_file_is_what_the_reduction_makes(smollm2_tokenizer):
    made = tiny_tokenizer.make()
    assert json.loads((tiny_tokenizer.FOLDER / "tokenizer.json").read_text()) == made
    assert len(made["model"]["vocab"]) == tiny_tokenizer.SIZE


@pytest.mark.slow
def test_needed_texts_have_the_tokens_of_smollm2(tiny, smollm2_tokenizer):
    for text in tiny_tokenizer.texts()[::50]:
        assert tiny.tokenize(text) == smollm2_tokenizer.tokenize(text), text


def test_answers_and_digits_are_single_tokens(tiny):
    for answer in (*tiny_tokenizer.ANSWERS, "7"):
        assert len(tiny(answer)["input_ids"]) == 1, answer
        assert answer.isdigit() or len(tiny(f" {answer}")["input_ids"]) == 1, answer
    assert len(tiny("1969")["input_ids"]) == 4


def test_special_tokens_keep_their_ids(tiny, smollm2_tokenizer):
    assert tiny.special_tokens_map == smollm2_tokenizer.special_tokens_map
    assert tiny.get_added_vocab() == smollm2_tokenizer.get_added_vocab()
    assert tiny.model_max_length == smollm2_tokenizer.model_max_length
    assert max(tiny.get_vocab().values()) == open_model("tiny-random").config.vocab_size - 1


def test_chats_are_those_of_smollm2(tiny, smollm2_tokenizer):
    for prompt in (False, True):
        text = tiny.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
        assert text == smollm2_tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
        ids = tiny.apply_chat_template(CHAT, add_generation_prompt=prompt)["input_ids"]
        assert tiny.decode(ids) == text
        # A token of SmolLM2 is one token here, or several of the same bytes.
        assert "".join(tiny.convert_ids_to_tokens(ids)) == "".join(smollm2_tokenizer.tokenize(text))
