"""Templates as published: a chat is rendered once, whole, and what is scored are the assistant's tokens in it.

All expectations are written by hand; `<BOS>` and the like are the families' own special tokens.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from smallr.data.chat import Renderer
from smallr.data.rows import TextRow
from smallr.data.templates import ChatTemplate, Unrenderable

FOLDER = Path(__file__).parent / "templates"
# Of each family: the beginning of a text, its end, and the other special tokens.
SPECIALS = {
    "smollm2": ("<|im_start|>", "<|im_end|>", ()),
    "smollm3": (None, "<|im_end|>", ("<|im_start|>",)),
    "qwen2_5": (None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "qwen3": (None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "deepseek_r1_distill": (
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>"),
    ),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>")),
    "llama3_2": ("<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>")),
    "gemma": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "gemma3": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "phi3_5": ("<s>", "<|endoftext|>", ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")),
    "phi4": ("<|endoftext|>", "<|im_end|>", ("<|im_start|>", "<|im_sep|>")),
    "mistral_7b": ("<s>", "</s>", ()),
    "mistral_nemo": ("<s>", "</s>", ("[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")),
}
SMOLLM2 = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
QWEN2 = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
LLAMA = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|>"
)
HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
TWO_TURNS = [("user", "2+2?"), ("assistant", "4"), ("user", "3+3?"), ("assistant", "6")]

# Family: the whole text of TWO_TURNS, and what of it is scored.
RENDERED = {
    "smollm2": (
        SMOLLM2 + "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n6<|im_end|>\n",
        ["4<|im_end|>", "6<|im_end|>"],
    ),
    "qwen2_5": (
        QWEN2 + "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n6<|im_end|>\n",
        ["4<|im_end|>", "6<|im_end|>"],
    ),
    "qwen3": (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n6<|im_end|>\n",
        ["4<|im_end|>", "<think>\n\n</think>\n\n6<|im_end|>"],
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        f"{HEADER}4<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n3+3?<|eot_id|>{HEADER}6<|eot_id|>",
        ["4<|eot_id|>", "6<|eot_id|>"],
    ),
    "llama3_2": (
        f"{LLAMA}<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        f"{HEADER}4<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n3+3?<|eot_id|>{HEADER}6<|eot_id|>",
        ["4<|eot_id|>", "6<|eot_id|>"],
    ),
    "gemma": (
        "<bos><start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n"
        "<start_of_turn>user\n3+3?<end_of_turn>\n<start_of_turn>model\n6<end_of_turn>\n",
        ["4<end_of_turn>", "6<end_of_turn>"],
    ),
    "gemma3": (
        "<bos><start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n"
        "<start_of_turn>user\n3+3?<end_of_turn>\n<start_of_turn>model\n6<end_of_turn>\n",
        ["4<end_of_turn>", "6<end_of_turn>"],
    ),
    "phi3_5": (
        "<|user|>\n2+2?<|end|>\n<|assistant|>\n4<|end|>\n<|user|>\n3+3?<|end|>\n<|assistant|>\n6<|end|>\n<|endoftext|>",
        ["4<|end|>", "6<|end|>"],
    ),
    "phi4": (
        "<|im_start|>user<|im_sep|>2+2?<|im_end|><|im_start|>assistant<|im_sep|>4<|im_end|>"
        "<|im_start|>user<|im_sep|>3+3?<|im_end|><|im_start|>assistant<|im_sep|>6<|im_end|>",
        ["4<|im_end|>", "6<|im_end|>"],
    ),
    "mistral_7b": ("<s>[INST] 2+2? [/INST]4</s>[INST] 3+3? [/INST]6</s>", ["4</s>", "6</s>"]),
    "mistral_nemo": ("<s>[INST]2+2?[/INST]4</s>[INST]3+3?[/INST]6</s>", ["4</s>", "6</s>"]),
}


def family(name, template=None):
    """A tokenizer of bytes with the special tokens and the template of a family."""
    bos, eos, others = SPECIALS[name]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(alphabet))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.add_special_tokens({"additional_special_tokens": list(others)})
    fast.chat_template = template or (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    return fast


def chat(pairs):
    return tuple({"role": role, "content": content} for role, content in pairs)


def row(messages, *, prompt=None, **fields):
    messages = tuple(messages)
    first = (
        next(i for i, message in enumerate(messages) if message["role"] == "assistant") if prompt is None else prompt
    )
    return TextRow(0, messages[:first], (messages[first:],), {}, **fields)


def rendered(name, messages, **fields):
    (marked,) = Renderer(family(name), chat=True).text_row(row(messages, **fields))
    return marked.text, [marked.text[span.start : span.end] for span in marked.spans], marked.notes


@pytest.mark.parametrize("name", RENDERED)
def test_two_turns_are_one_rendering_with_both_answers_scored(name):
    assert rendered(name, chat(TWO_TURNS)) == (*RENDERED[name], ())


@pytest.mark.parametrize("name", RENDERED)
def test_the_last_answer_alone_is_what_generation_writes_behind_its_prompt(name):
    """One completion behind a prompt of three messages: the prompt is the template's own opening."""
    tokenizer = family(name)
    text, scored, _ = rendered(name, chat(TWO_TURNS), prompt=3)
    opening = ChatTemplate(tokenizer).opening(chat(TWO_TURNS[:3]))
    assert (text, scored) == (RENDERED[name][0], RENDERED[name][1][1:])
    assert text.startswith(opening + scored[0])


@pytest.mark.parametrize("name", RENDERED)
def test_plain_strings_are_the_same_chat(name):
    (marked,) = Renderer(family(name), chat=True).text_row(TextRow(0, "2+2?", ("4",), {}))
    text, scored, _ = rendered(name, chat(TWO_TURNS[:2]))
    assert (marked.text, [marked.text[span.start : span.end] for span in marked.spans]) == (text, scored)


def test_smollm3_in_both_modes():
    system = (
        "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 26 July 2024\n"
        "Reasoning Mode: {mode}\n\n## Custom Instructions\n\nBe brief.\n\n"
    )
    turns = [("system", "Be brief."), *TWO_TURNS]
    text, scored, _ = rendered("smollm3", chat(turns))
    assert text.startswith(system.format(mode="/think"))
    assert scored == ["4<|im_end|>", "6<|im_end|>"]
    # Here the empty thought is a part of the prompt, as it is when the model is used.
    text, scored, _ = rendered("smollm3", chat([("system", "Be brief./no_think"), *TWO_TURNS]))
    assert text.startswith(system.format(mode="/no_think"))
    assert text.count("<think>\n\n</think>\n") == 2
    assert scored == ["4<|im_end|>", "6<|im_end|>"]


THOUGHTS = [
    ("user", "2+2?"),
    ("assistant", "<think>\ntwo\n</think>\n\n4"),
    ("user", "3+3?"),
    ("assistant", "<think>\nthree\n</think>\n\n6"),
]
LEFT_OUT = "the chat template leaves the thinking out of earlier turns"


def test_qwen3_writes_the_thinking_of_the_last_turn_alone():
    text, scored, notes = rendered("qwen3", chat(THOUGHTS))
    assert text == (
        "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n<think>\nthree\n</think>\n\n6<|im_end|>\n"
    )
    assert scored == ["4<|im_end|>", "<think>\nthree\n</think>\n\n6<|im_end|>"]
    assert notes == (LEFT_OUT,)


def test_thinking_in_a_field_of_its_own():
    messages = [*chat(TWO_TURNS[:3]), {"role": "assistant", "content": "6", "reasoning_content": "three"}]
    _, scored, notes = rendered("qwen3", messages)
    assert scored == ["4<|im_end|>", "<think>\nthree\n</think>\n\n6<|im_end|>"]
    assert notes == ()
    _, scored, notes = rendered("smollm2", messages)
    assert scored == ["4<|im_end|>", "6<|im_end|>"]
    assert notes == ("the chat template does not read 'reasoning_content' of messages",)


def test_templates_that_know_no_thinking_keep_it_as_it_is():
    for name, end in (("smollm2", "<|im_end|>"), ("llama3_2", "<|eot_id|>"), ("gemma3", "<end_of_turn>")):
        _, scored, notes = rendered(name, chat(THOUGHTS))
        assert scored == ["<think>\ntwo\n</think>\n\n4" + end, "<think>\nthree\n</think>\n\n6" + end]
        assert notes == ()


def test_r1_goes_on_from_the_thought_that_generation_opens():
    text, scored, notes = rendered("deepseek_r1_distill", chat(THOUGHTS))
    assert text == (
        "<｜begin▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜>\n\n4<｜end▁of▁sentence｜>"
        "<｜User｜>3+3?<｜Assistant｜><think>\nthree\n</think>\n\n6<｜end▁of▁sentence｜>"
    )
    assert scored == ["\n\n4<｜end▁of▁sentence｜>", "three\n</think>\n\n6<｜end▁of▁sentence｜>"]
    assert notes == (LEFT_OUT,)


def test_r1_without_thinking_names_what_helps():
    with pytest.raises(Unrenderable, match=r"opens an answer with '<think>\\n', .*config\.tokenizer.*data\.chat=False"):
        rendered("deepseek_r1_distill", chat(TWO_TURNS))


def test_a_chain_of_calls_in_qwen3():
    """Thoughts of a chain are written while it is the last, so that later they are gone: only the rendering is scored."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
    chain = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>\nadd\n</think>\n\n", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\n4"},
    ]
    called = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call><|im_end|>'
    _, scored, notes = rendered("qwen3", chain)
    assert scored == ["<think>\nadd\n</think>\n\n" + called, "<think>\nso\n</think>\n\n4<|im_end|>"]
    assert notes == ()
    _, scored, notes = rendered(
        "qwen3", [*chain, {"role": "user", "content": "?"}, {"role": "assistant", "content": "6"}]
    )
    assert scored == [called, "4<|im_end|>", "<think>\n\n</think>\n\n6<|im_end|>"]
    assert notes == (LEFT_OUT,)


TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
CALL = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
CALLS = (
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "4", "tool_call_id": "call00001"},
    {"role": "assistant", "content": "It is 4."},
)


@pytest.mark.parametrize(
    ("name", "shown", "called", "answered"),
    [
        (
            "qwen2_5",
            '<tools>\n{"type": "function", "function": {"name": "add"',
            '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call><|im_end|>',
            "It is 4.<|im_end|>",
        ),
        (
            "llama3_2",
            '"name": "add",\n        "description": "adds"',
            '{"name": "add", "parameters": {"a": 2, "b": 2}}<|eot_id|>',
            "It is 4.<|eot_id|>",
        ),
        (
            "mistral_nemo",
            '[AVAILABLE_TOOLS][{"type": "function", "function": {"name": "add"',
            '[TOOL_CALLS][{"name": "add", "arguments": {"a": 2, "b": 2}, "id": "call00001"}]</s>',
            "It is 4.</s>",
        ),
    ],
)
def test_tools_are_shown_and_calls_are_scored(name, shown, called, answered):
    text, scored, notes = rendered(name, CALLS, tools=(TOOL,))
    assert shown in text[: text.index(called)]
    # Qwen2.5 writes its line break behind the header with the call.
    assert [piece.lstrip("\n") for piece in scored] == [called, answered]
    assert notes == ()


def test_templates_that_write_no_calls():
    with pytest.raises(Unrenderable, match=r"does not write tool calls|rewrites the completion"):
        rendered("smollm2", CALLS)
    _, scored, notes = rendered("smollm2", chat(TWO_TURNS), tools=(TOOL,))
    assert scored == ["4<|im_end|>", "6<|im_end|>"]
    assert notes == ("the chat template does not show `tools`",)


@pytest.mark.parametrize("name", RENDERED)
def test_a_message_of_weight_0_is_there_but_not_scored(name):
    messages = list(chat(TWO_TURNS))
    messages[1] = {**messages[1], "weight": 0}
    assert rendered(name, messages)[:2] == (RENDERED[name][0], RENDERED[name][1][1:])


@pytest.mark.parametrize("name", RENDERED)
def test_an_answer_that_has_begun_is_gone_on_with(name):
    messages = (
        *chat(TWO_TURNS[:3]),
        {"role": "assistant", "content": "It is"},
        {"role": "assistant", "content": " 6."},
    )
    text, scored, _ = rendered(name, messages, prompt=4)
    end = RENDERED[name][1][1].partition("6")[2]
    assert scored == [" 6." + end]
    assert text[: text.rindex(" 6.")].endswith("It is")


def test_roles_that_a_template_refuses():
    for name in ("gemma", "mistral_7b"):
        with pytest.raises(Unrenderable, match="refuses the conversation: "):
            rendered(name, chat([("system", "Be brief."), *TWO_TURNS]))
    # Nemo puts the system message before the last user's, so that it moves once an answer follows.
    with pytest.raises(
        Unrenderable, match=r"writes the prompt differently once an answer follows; .*config\.tokenizer"
    ):
        rendered("mistral_nemo", chat([("system", "Be brief."), *TWO_TURNS]))
    text, *_ = rendered("gemma3", chat([("system", "Be brief."), *TWO_TURNS]))
    assert text.startswith("<bos><start_of_turn>user\nBe brief.\n\n2+2?<end_of_turn>")


@pytest.mark.parametrize("name", ["llama3_2", "smollm3"])
def test_the_date_does_not_depend_on_the_day(name, monkeypatch):
    texts = set()
    for day in (1, 2):

        class Day(datetime.datetime):
            @classmethod
            def now(cls, tz=None, day=day):
                return cls(2031, 5, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Day)
        texts.add(rendered(name, chat(TWO_TURNS))[0])
    assert len(texts) == 1
    (marked,) = Renderer(family(name), chat=True, date="2025-01-02").text_row(row(chat(TWO_TURNS)))
    assert ("02 Jan 2025" if name == "llama3_2" else "02 January 2025") in marked.text


@pytest.mark.parametrize("name", RENDERED)
def test_text_that_has_been_rendered_before_is_noticed(name):
    text, scored, _ = rendered(name, chat(TWO_TURNS[:2]))
    prompt = text[: text.index(scored[0])]
    renderer = Renderer(family(name), chat=True)
    with pytest.raises(Unrenderable, match=r"rendered already; set data\.chat=False"):
        renderer.text_row(TextRow(0, prompt, (scored[0],), {}))
    with pytest.raises(Unrenderable, match="rendered already"):
        renderer.text_row(TextRow(0, "2+2?", (scored[0],), {}))
