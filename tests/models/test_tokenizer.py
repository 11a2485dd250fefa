"""The tokenizer rebuilt from GGUF metadata: text survives, numbers split, chats look as the template says."""

from __future__ import annotations

import inspect
import unicodedata

import pytest
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter

from smallr.core.errors import UserError
from smallr.models.families import FAMILIES
from smallr.models.gguf_tokenizer import PRE_TOKENIZERS, gguf_tokenizer

TEXTS = (
    "Hello, world! I'm here; they've gone.",
    "12345 apples cost 67.89 dollars, i.e. 3 for 1,000.",
    "  leading, trailing  \n\n\ttabs\r\nand  double  spaces ",
    "naïve café, Grüße, 猫は寝ています。 🙂 नमस्ते ½ x² Ⅷ",
    "def f(x):\n    return x**2  # 3.14\n",
    "<|im_start|>user\nHi<|im_end|>\n",
    "",
)


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(smollm2_tokenizer, text):
    assert smollm2_tokenizer.decode(smollm2_tokenizer(text)["input_ids"]) == text


def test_digits_are_split_one_by_one(smollm2_tokenizer):
    assert smollm2_tokenizer.tokenize("In 1969: 12+345") == [
        "In",
        "Ġ",
        "1",
        "9",
        "6",
        "9",
        ":",
        "Ġ",
        "1",
        "2",
        "+",
        "3",
        "4",
        "5",
    ]


def test_tokens_are_those_of_the_published_definition(smollm2, smollm2_tokenizer):
    """Against a tokenizer built here from the parts that SmolLM2's tokenizer.json names."""
    file = smollm2.make_reader()
    vocabulary = {token: n for n, token in enumerate(file.metadata("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in file.metadata("tokenizer.ggml.merges")]
    reference = Tokenizer(models.BPE(vocabulary, merges))
    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    reference.decoder = decoders.ByteLevel()
    for text in TEXTS:
        if "<|" not in text:
            assert smollm2_tokenizer(text)["input_ids"] == reference.encode(text).ids, text


def test_special_tokens(smollm2_tokenizer):
    tokenizer = smollm2_tokenizer
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id) == (2, 1, 0)
    assert tokenizer("<|im_start|>a<|im_end|><repo_name>")["input_ids"] == [
        1,
        tokenizer.convert_tokens_to_ids("a"),
        2,
        3,
    ]
    assert tokenizer("plain")["input_ids"] == tokenizer("plain", add_special_tokens=False)["input_ids"], (
        "no BOS, no EOS"
    )
    assert tokenizer.decode([1, 2, 3, 17], skip_special_tokens=True) == "!"
    assert len(tokenizer) == 49152


def test_chat_template(smollm2_tokenizer):
    chat = [
        {"role": "user", "content": "What is 2+2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Sure?"},
    ]
    want = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert smollm2_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == want
    ids = smollm2_tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert smollm2_tokenizer.decode(ids) == want
    assert ids.count(2) == 4


class _Metadata:
    """A GGUF file's tokenizer metadata over bytes only: no merges, so tokens show the pre-tokenizer's pieces."""

    path = "made-up.gguf"
    family = FAMILIES["qwen2"]

    def __init__(self, pre: str, **changes):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        self.values = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": ["<bos>", "<eos>", "<tool>", *alphabet],
            "tokenizer.ggml.token_type": [3, 3, 4] + [1] * 256,
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 1,
        } | changes

    class config:
        max_positions = 64

    def metadata(self, key, default=None):
        return self.values.get(key, default)


def _pieces(pre: str, text: str) -> list[str]:
    backend = gguf_tokenizer(_Metadata(pre)).backend_tokenizer
    return [text[a:b] for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(text)]


def test_pre_tokenizers_cut_as_their_models_do():
    text = "It's 12345 o'CLOCK!\n\n  yes"
    assert _pieces("gpt-2", text) == ["It", "'s", " 12345", " o", "'", "CLOCK", "!", "\n\n ", " yes"]
    assert _pieces("smollm", text) == [
        "It",
        "'s",
        " ",
        "1",
        "2",
        "3",
        "4",
        "5",
        " o",
        "'",
        "CLOCK",
        "!",
        "\n\n ",
        " yes",
    ]
    assert _pieces("llama-bpe", text) == ["It", "'s", " ", "123", "45", " o", "'CLOCK", "!\n\n", " ", " yes"]
    assert _pieces("qwen2", text) == ["It", "'s", " ", "1", "2", "3", "4", "5", " o", "'CLOCK", "!\n\n", " ", " yes"]


def test_normalisation_is_qwens_only():
    decomposed = unicodedata.normalize("NFD", "é")
    lengths = {
        pre: len(gguf_tokenizer(_Metadata(pre))(decomposed, add_special_tokens=False)["input_ids"])
        for pre in PRE_TOKENIZERS
    }
    assert {pre for pre, length in lengths.items() if length == 2} == {"qwen2", "deepseek-r1-qwen"}
    assert set(lengths.values()) == {2, 3}


def test_bos_and_eos_where_the_file_asks():
    def ids(pre: str, **changes) -> list[int]:
        return gguf_tokenizer(_Metadata(pre, **changes))("!")["input_ids"]

    mark = 3 + sorted(pre_tokenizers.ByteLevel.alphabet()).index("!")
    assert ids("qwen2") == [mark]
    assert ids("llama-bpe") == [0, mark]
    assert ids("llama-bpe", **{"tokenizer.ggml.add_bos_token": False}) == [mark]
    assert ids("qwen2", **{"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}) == [0, mark, 1]


def test_user_defined_tokens_are_kept_whole_but_not_special():
    tokenizer = gguf_tokenizer(_Metadata("qwen2"))
    assert tokenizer("<tool>")["input_ids"] == [2]
    assert tokenizer.decode([0, 2], skip_special_tokens=True) == "<tool>"


class _As:
    """A file whose pre-tokenizer has another name."""

    def __init__(self, file, pre: str):
        self.path, self.family, self.config, self._file, self._pre = "x.gguf", file.family, file.config, file, pre

    def metadata(self, key, default=None):
        return self._pre if key == "tokenizer.ggml.pre" else self._file.metadata(key, default)


@pytest.mark.parametrize("pre", [pre for pre in PRE_TOKENIZERS if pre != "smollm"])
def test_tokens_are_those_of_transformers_own_classes(smollm2, pre):
    """transformers' classes write their pre-tokenizers themselves; the merges here are SmolLM2's."""
    file = smollm2.make_reader()
    vocabulary = {token: n for n, token in enumerate(file.metadata("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in file.metadata("tokenizer.ggml.merges")]
    if pre == "gpt-2":
        reference = transformers.GPT2Tokenizer(vocab=vocabulary, merges=merges).backend_tokenizer
    elif "qwen" in pre:
        reference = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges).backend_tokenizer
    else:  # the pattern with which transformers converts Llama 3's and OpenAI's cl100k files
        pattern = inspect.signature(TikTokenConverter).parameters["pattern"].default
        reference = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre != "dbrx"))
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        reference.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    ours = gguf_tokenizer(_As(file, pre))
    for text in (*TEXTS, unicodedata.normalize("NFD", TEXTS[3]), "I'LL can't 1234567\r\n\r\n  x\u3000y"):
        if "<|" not in text:
            ids = ours(text, add_special_tokens=False)["input_ids"]
            assert ids == reference.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize(
    ("pre", "changes", "message"),
    [
        (
            "deepseek-llm",
            {},
            "'gpt2' with pre-tokenizer 'deepseek-llm' can not be rebuilt exactly .*smollm.*config.tokenizer=FOLDER",
        ),
        ("qwen2", {"tokenizer.ggml.model": "llama"}, "tokenizer 'llama' with pre-tokenizer 'qwen2' can not be rebuilt"),
        ("qwen2", {"tokenizer.ggml.tokens": None}, "no tokenizer in the GGUF metadata"),
    ],
)
def test_what_is_not_known_exactly_is_refused(pre, changes, message):
    with pytest.raises(UserError, match=message):
        gguf_tokenizer(_Metadata(pre, **changes))
