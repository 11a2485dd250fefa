"""The tokenizer that does without transformers answers as that of transformers does."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from smallr.data.quick_tokenizer import QuickTokenizer, simple_template, whole
from smallr.models.gguf_tokenizer import gguf_tokenizer
from tests.models.test_tokenizer import TEXTS, _Metadata
from tests.runs import ROOT, environment

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIMPLE = [
    CHATML,
    "{{ bos_token }}\n  {% for m in messages[1:] %}\n    {{ m.content | trim }}{{ m.role ~ eos_token }}\n  {% endfor %}\n",
    "{% if tools is not none and documents is undefined %}x{% elif not tools and add_generation_prompt %}y{% endif %}z",
    "{{ messages[0]['content'] if messages[0].role == 'user' else '' }}",
]
OTHERS = [
    "{{ raise_exception('no') }}",
    "{% if strftime_now is defined %}a{% endif %}",
    "{{ messages[0].__class__ }}",
    "{{ messages | tojson }}",
    "{{ 'a' * 10 }}",
    "{% set x = namespace(y=1) %}{{ x.y }}",
    "{% generation %}a{% endgeneration %}",
    "{% for x in range(3) %}{{ x }}{% endfor %}",
    "{{ messages[0]['content'].strip() }}",
    "{{ broken",
]
CHATS = [
    [{"role": "user", "content": "What is 17 + 25?"}],
    [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "<b>\n{{ x }}"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "ü 漢"}],
]


def both(pre="qwen2", **changes) -> tuple[QuickTokenizer, PreTrainedTokenizerFast]:
    """A tokenizer of bytes, and the one of transformers that it stands for."""
    quick = gguf_tokenizer(_Metadata(pre, **changes))
    assert isinstance(quick, QuickTokenizer)
    return quick, quick.whole


def outcome(render, chat, **options):
    """Returns the text, or the kind of error."""
    try:
        return render(chat, tokenize=False, **options)
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize(
    ("pre", "changes"),
    [
        ("smollm", {}),
        ("qwen2", {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}),
        ("llama-bpe", {"tokenizer.ggml.padding_token_id": 1, "tokenizer.ggml.unknown_token_id": 0}),
        ("gpt-2", {"tokenizer.ggml.token_type": [1, 1, 4] + [1] * 256}),  # special tokens that the file does not mark
        ("dbrx", {"tokenizer.ggml.token_type": [3, 4, 3] + [1] * 256}),
    ],
)
def test_tokens_texts_and_specials_are_those_of_transformers(pre, changes):
    quick, other = both(pre, **changes)
    assert quick.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    for text in (*TEXTS, "<bos>a<eos><tool> b"):
        for adds in (True, False):
            ids = quick(text, add_special_tokens=adds)["input_ids"]
            assert ids == other(text, add_special_tokens=adds)["input_ids"]
            for skips in (True, False):
                assert quick.decode(ids, skip_special_tokens=skips) == other.decode(ids, skip_special_tokens=skips)
    names = [f"{name}_token" for name in ("bos", "eos", "unk", "pad")]
    same = [*names, *(f"{name}_id" for name in names), "special_tokens_map", "all_special_tokens", "all_special_ids"]
    for name in (*same, "name_or_path", "is_fast", "chat_template", "model_max_length", "vocab_size"):
        assert getattr(quick, name) == getattr(other, name), name
    assert list(quick.special_tokens_map) == list(other.special_tokens_map)
    assert {n: str(t) for n, t in quick.added_tokens_decoder.items()} == {
        n: str(t) for n, t in other.added_tokens_decoder.items()
    }
    assert (len(quick), quick.get_vocab(), bool(quick)) == (len(other), other.get_vocab(), True)


@pytest.mark.parametrize(
    "template", [*SIMPLE, *OTHERS, *(path.read_text() for path in sorted(TEMPLATES.glob("*.jinja")))]
)
def test_chats_are_rendered_as_by_transformers(template):
    quick, other = both(**{"tokenizer.chat_template": template})
    for chat in CHATS:
        for options in ({}, {"add_generation_prompt": True}, {"chat_template": template}, {"enable_thinking": False}):
            assert outcome(quick.apply_chat_template, chat, **options) == outcome(
                other.apply_chat_template, chat, **options
            )


def test_what_is_rendered_without_transformers_calls_nothing():
    assert [simple_template(text) is not None for text in (*SIMPLE, *OTHERS)] == [True] * len(SIMPLE) + [False] * len(
        OTHERS
    )
    quick, _ = both(**{"tokenizer.chat_template": CHATML})
    del quick.__dict__["whole"]
    quick.apply_chat_template(CHATS[0], tokenize=False)
    assert "whole" not in quick.__dict__
    odd = [{"role": "user", "content": "a", "thinking": "b"}]
    assert quick.apply_chat_template(odd, tokenize=False) == quick.whole.apply_chat_template(odd, tokenize=False)
    assert quick.apply_chat_template(CHATS[0]) == quick.whole.apply_chat_template(CHATS[0])  # with tokens


def test_copies_and_what_else_is_asked_are_of_transformers():
    quick, other = both(**{"tokenizer.chat_template": CHATML})
    for each in (copy.deepcopy(quick), pickle.loads(pickle.dumps(quick)), whole(quick), whole(other)):
        assert type(each) is type(other)
        assert each.backend_tokenizer.to_str() == quick.backend_tokenizer.to_str()
    assert quick.tokenize("In 17") == other.tokenize("In 17")
    assert quick(["a", "b"], return_offsets_mapping=True) == other(["a", "b"], return_offsets_mapping=True)
    with pytest.raises(AttributeError, match="no_such"):
        _ = quick.no_such


@pytest.mark.process
def test_the_built_in_model_is_prompted_and_read_without_transformers(smollm2):
    code = (
        "import sys\n"
        "from smallr.models.loading import open_model\n"
        "from smallr.sampling.prompts import prompt_ids\n"
        "from smallr.sampling.requests import Request\n"
        "from smallr.models.chat_template import end_of_turn\n"
        "tokenizer = open_model('smollm2-135m-instruct').quick_tokenizer()\n"
        "ids = prompt_ids(Request(messages=({'role': 'user', 'content': 'Hi'},)), tokenizer, 49152)\n"
        "assert end_of_turn(tokenizer) == (2,) and tokenizer.decode(ids).endswith('assistant\\n')\n"
        "sys.exit('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=False).returncode == 0
