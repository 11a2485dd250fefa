"""The token that ends an answer is found in the template, whatever the tokenizer's files name."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from smallr.models.chat_template import end_of_turn
from smallr.models.scratch import train_tokenizer

TURN = "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}END\n{% endfor %}"


@pytest.fixture
def tokenizer():
    tokenizer = train_tokenizer(["a small text"], 300)
    tokenizer.add_tokens([AddedToken("<|eot|>", special=True), AddedToken("<|word|>", special=False)])
    return tokenizer


@pytest.mark.parametrize(
    ("end", "found"),
    [
        ("<|im_end|>", ["<|im_end|>"]),
        ("<|eot|>", ["<|eot|>"]),  # special, but none of those that tokenizer_config.json names
        (" <|eot|><|im_end|>", ["<|eot|>"]),
        ("<|word|>", []),
        ("", []),
        ("{{ raise_exception('no') }}", []),
    ],
)
def test_the_end_of_a_turn(tokenizer, end, found):
    tokenizer.chat_template = TURN.replace("END", end)
    assert tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)) == found


def test_a_base_model_s_tokenizer_may_name_another_end(tokenizer):
    tokenizer.eos_token = tokenizer.pad_token = "<|im_start|>"
    tokenizer.add_special_tokens({"additional_special_tokens": []}, replace_extra_special_tokens=True)
    tokenizer.chat_template = TURN.replace("END", "<|im_end|>")
    assert end_of_turn(tokenizer) == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)


def test_without_a_template_there_is_none(tokenizer):
    tokenizer.chat_template = None
    assert end_of_turn(tokenizer) == ()
