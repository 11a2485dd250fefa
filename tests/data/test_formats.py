"""Rows are recognised by their columns, the same data in two shapes is the same, and what is not read is said."""

from __future__ import annotations

import datasets
import pyarrow as pa
import pytest

from smallr.data.batch import ROLE_ANSWER
from smallr.data.drops import DropReport
from smallr.data.encode import Encoder
from smallr.data.errors import DataError
from smallr.data.formats import read_as, recognise
from smallr.data.overlap import shared_examples
from smallr.data.rows import parse_rows
from tests.data.conftest import TOY
from tests.data.tokens import text_by_role, whole
from tests.data.toy_tokenizer import build

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}


def shown(tokens, number=0):
    """Text of the prompt, and what is scored of each completion."""
    example = tokens[number]
    return TOY.decode(example.prefix), [
        text_by_role(TOY, example, ROLE_ANSWER, side) for side in range(len(example.completions))
    ]


SFT = [
    ("messages", {"messages": [USER, ANSWER]}),
    ("prompt_completion", {"prompt": "2+2?", "completion": "4"}),
    ("prompt_completion", {"prompt": "2+2?", "completion": 4}),
    ("prompt_completion", {"prompt": [USER], "completion": [ANSWER]}),
    ("prompt_completion", {"prompt": "\n\nHuman: 2+2?\n\nAssistant:", "completion": " 4"}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}),
    ("sharegpt", {"conversations": [{"from": "user", "value": "2+2?"}, {"from": "chatgpt", "value": "4"}], "id": "7"}),
    ("sharegpt", {"conversations": [USER, ANSWER]}),
    ("alpaca", {"instruction": "2+2?", "input": "", "output": "4"}),
    ("alpaca", {"instruction": "2+2?", "output": "4", "text": "Below is …"}),
    ("question_response", {"question": "2+2?", "response": "4"}),
    ("question_answer", {"question": "2+2?", "answer": "4"}),
]


@pytest.mark.parametrize(("name", "row"), SFT)
def test_one_answer_in_every_format(run, name, row):
    tokens = run([row], kind="sft", chat=True)
    expected = run([{"messages": [USER, ANSWER]}], kind="sft", chat=True)
    assert whole(tokens[0]) == whole(expected[0])
    assert recognise("sft", list(row), "rows").name == name
    assert "\n  read as: " in str(tokens.report)


PAIRS = [
    ("pairs", {"prompt": "2+2?", "chosen": "4", "rejected": "5"}),
    ("pairs", {"prompt": "2+2?", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER | {"content": "5"}]}),
    ("implicit_prompt", {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"}),
    ("orca", {"question": "2+2?", "chosen": "4", "rejected": "5", "system": ""}),
    ("alpaca_pairs", {"instruction": "2+2?", "chosen": "4", "rejected": "5"}),
    (
        "sharegpt_pairs",
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
    ),
    (
        "ultrafeedback",
        {
            "instruction": "2+2?",
            "completions": [
                {"response": "5", "overall_score": 1.0},
                {"response": "4", "overall_score": 5.0},
                {"response": "it depends", "overall_score": 3.0},
            ],
        },
    ),
]


@pytest.mark.parametrize(("name", "row"), PAIRS)
def test_one_pair_in_every_format(run, name, row):
    tokens = run([row], kind="preference", chat=True)
    expected = run([PAIRS[0][1]], kind="preference", chat=True)
    for side in (0, 1):
        assert whole(tokens[0], side) == whole(expected[0], side)
    assert recognise("preference", list(row), "rows").name == name


@pytest.mark.parametrize(
    ("good", "bad"), [(True, False), (1, 0), (1.0, 0.0), ("1", "0"), ("1.0", "0.0"), ("true", "False")]
)
def test_labels_in_every_form(good, bad):
    rows = [{"prompt": "p q", "completion": "a", "label": good}, {"prompt": "r s", "completion": "b", "label": bad}]
    parsed = list(parse_rows(rows, "unpaired", DropReport("rows", 9)))
    assert [row.columns["label"] for row in parsed] == [1, 0]
    messages = [{"messages": [USER, ANSWER], "label": good}, {"messages": [USER, ANSWER], "label": bad}]
    reading = read_as("unpaired", ["messages", "label"], messages, "rows")
    parsed = list(parse_rows(messages, "unpaired", DropReport("rows", 9), reading=reading))
    assert [(row.completions, row.columns["label"]) for row in parsed] == [(((ANSWER,),), 1), (((ANSWER,),), 0)]


def test_several_readings_are_an_error_that_lists_them():
    with pytest.raises(DataError) as error:
        recognise("sft", ["messages", "prompt", "completion"], "rows.jsonl")
    assert "rows.jsonl: sft rows with these columns can be read in 2 ways" in str(error.value)
    assert "messages reads messages; prompt_completion reads prompt, completion" in str(error.value)
    assert "--config.data.format=NAME (of smallr score: --format=NAME)" in str(error.value)
    assert recognise("sft", ["messages", "prompt", "completion"], "x", "messages").name == "messages"
    with pytest.raises(DataError, match=r"conversations; alpaca reads instruction, output"):
        recognise("sft", ["conversations", "instruction", "output"], "x")
    with pytest.raises(DataError, match=r"format 'alpace' of sft rows must be one of: .*did you mean 'alpaca'"):
        recognise("sft", [], "x", "alpace")
    with pytest.raises(DataError, match="x: format alpaca needs the column 'output'; present instruction"):
        recognise("sft", ["instruction"], "x", "alpaca")
    # Ours go before others', and text is what is left.
    assert recognise("sft", ["messages", "conversations", "text"], "x").name == "messages"
    assert recognise("sft", ["text", "id"], "x").name == "text"


def test_what_is_read_and_what_is_not_is_said(run):
    rows = [{"prompt": "2+2?", "chosen": "4", "rejected": "5", "system": "Count.", "weight": 2, "id": 1}]
    tokens = run(rows, chat=True)
    assert "read as: pairs (prompt, chosen, rejected, system)\n  columns not read: weight, id" in str(tokens.report)
    assert "<|im_start|>system\nCount.<|im_end|>" in shown(tokens)[0]
    # Also where the tokens are found again beside other columns.
    again = run([{**rows[0], "source": "x"}], chat=True)
    assert again.report.unread == ("weight", "id", "source")
    tokens = run(rows, chat=False)
    assert "`system` and `tools` are not read with data.chat=False" in str(tokens.report)


def test_alpacas_input_is_never_lost(run):
    row = {"instruction": "Add.", "input": "2, 2", "output": "4"}
    prompt, (scored,) = shown(run([row], kind="sft", chat=True))
    assert "<|im_start|>user\nAdd.\n\n2, 2<|im_end|>" in prompt
    assert scored == "4<|im_end|>"
    mapped = datasets.Dataset.from_list([row]).rename_columns({"instruction": "prompt", "output": "completion"})
    assert shown(run(mapped, kind="sft", chat=True))[0] == prompt
    history = {**row, "history": [["1+1?", "2"]]}
    (example,) = run([history], kind="sft", chat=True)
    assert "user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>" in TOY.decode(example.prefix)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("sft", {"instruction": "Add.", "output": "4"}),
        ("sft", {"prompt": "Add.", "completion": "4"}),
        ("preference", {"instruction": "Add.", "chosen": "4", "rejected": "5"}),
        ("preference", {"prompt": "Add.", "chosen": "4", "rejected": "5"}),
        (
            "preference",
            {"instruction": "Add.", "completions": [{"response": "5", "score": 1}, {"response": "4", "score": 2}]},
        ),
        ("unpaired", {"instruction": "Add.", "output": "4", "label": 1}),
        ("unpaired", {"prompt": "Add.", "completion": "4", "label": 1}),
    ],
)
@pytest.mark.parametrize(
    ("about", "expected"),
    [("2, 2", "Add.\n\n2, 2"), (0, "Add.\n\n0"), (2.0, "Add.\n\n2"), (" ", "Add."), (None, "Add.")],
)
def test_an_input_stands_behind_the_instruction_in_every_format(kind, row, about, expected):
    """A number is an input too, zero included."""
    row = {**row, "input": about}
    report = DropReport("rows", 100)
    (parsed,) = parse_rows([row], kind, report, reading=read_as(kind, list(row), [row], "rows"), chat=True)
    assert parsed.prompt == expected
    assert parsed.completions[0] == "4"
    without = {**row, "input": "2, 2", next(iter(row)): None}
    (parsed,) = parse_rows([without], kind, report, reading=read_as(kind, list(row), [without], "rows"), chat=True)
    assert parsed.prompt == "2, 2"


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (7.0, "7"), (0.5, "0.5"), (True, "true"), (0, "0")])
def test_numbers_in_columns_of_text_are_written_out(value, text):
    for kind, row in {
        "sft": {"prompt": value, "completion": value},
        "preference": {"prompt": value, "chosen": value, "rejected": "other"},
        "unpaired": {"prompt": value, "completion": value, "label": 1},
        "completions": {"prompt": value, "completions": [value, "other"]},
    }.items():
        (parsed,) = parse_rows([row], kind, DropReport("rows", 100))
        assert (parsed.prompt, parsed.completions[0]) == (text, text)
    (parsed,) = parse_rows(
        [dict.fromkeys(("question", "rationale", "answer"), value)], "rationale", DropReport("rows", 100)
    )
    assert (parsed.question, parsed.rationale, parsed.answer) == (text,) * 3


def test_text_is_scored_from_its_second_token(run):
    (example,) = run([{"text": "How many apples?"}], kind="sft", chat=True)
    tokens, roles = whole(example)
    assert TOY.decode(tokens) == "How many apples?<|im_end|>"
    assert roles == [0] + [1] * (len(tokens) - 1)


# --- sides that repeat the prompt ---


def test_completions_that_repeat_the_prompt(run):
    rows = [
        {
            "prompt": f"What is {n}+2? Answer:",
            "chosen": f"What is {n}+2? Answer: {n + 2}",
            "rejected": f"What is {n}+2? Answer: 9",
        }
        for n in range(3)
    ]
    tokens = run(rows)
    assert shown(tokens, 1) == ("What is 1+2? Answer:", [" 3<|im_end|>", " 9<|im_end|>"])
    assert "the completions repeat the prompt, which is left out of them" in str(tokens.report)
    tokens = run([{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows])
    assert shown(tokens)[1] == [" 2<|im_end|>"]
    # A row alone shows it too, and is counted.
    plain = [{"prompt": f"What is {n}+2?", "completion": f"{n + 2}."} for n in range(3)]
    tokens = run([*plain, {"prompt": "What is 9+2?", "completion": "What is 9+2? It is 11."}])
    assert shown(tokens, 3)[1] == [" It is 11.<|im_end|>"]
    assert tokens.report.notes[LEFT_OUT].rows == [3]


LEFT_OUT = "the completions begin with the prompt, where most rows' do not: it is left out of them"
BY_CHANCE = "a completion begins with the prompt, perhaps by chance: it is scored as a part of it"
HUMAN = "\n\nHuman: 2+2?\n\nAssistant:"


@pytest.mark.parametrize("prompt", [HUMAN, HUMAN.strip(), HUMAN + " ", "Human: 1?\n\nAssistant: 1" + HUMAN, "2+2?"])
@pytest.mark.parametrize("lead", ["", "\n", "\n\n "])
@pytest.mark.parametrize("minority", [False, True])
def test_a_repeated_prompt_is_left_out_of_every_kind_of_chat(run, prompt, lead, minority):
    more = ("q", "r") if minority else ()
    sides = [f"{lead}{prompt.strip()} {answer}" for answer in "45"]

    def answers(kind, row, others):
        tokens = run([row, *others], kind=kind, chat=True)
        assert (LEFT_OUT in tokens.report.notes) == minority
        assert ("which is left out of them" in str(tokens.report)) != minority
        return shown(tokens)

    first, scored = answers(
        "preference",
        {"prompt": prompt, "chosen": sides[0], "rejected": sides[1]},
        [{"prompt": p, "chosen": "a", "rejected": "b"} for p in more],
    )
    assert scored == ["4<|im_end|>", "5<|im_end|>"]
    assert first.endswith("user\n2+2?<|im_end|>\n<|im_start|>assistant\n")
    others = [{"prompt": p, "completion": "a"} for p in more]
    assert answers("sft", {"prompt": prompt, "completion": sides[0]}, others) == (first, ["4<|im_end|>"])
    report = DropReport("rows", 9)
    rows = [{"prompt": prompt, "completion": side, "label": 1} for side in sides]
    reading = read_as("unpaired", list(rows[0]), rows, "rows")
    parsed = parse_rows(rows, "unpaired", report, reading=reading, chat=True)
    assert [row.completions[0] for row in parsed] in (["4", "5"], [({**ANSWER, "content": n},) for n in "45"])


def test_white_space_before_a_repeat_in_text(run):
    row = {"prompt": "What is 2+2?", "chosen": "\nWhat is 2+2? 4", "rejected": "\nWhat is 2+2? 5"}
    assert shown(run([row]))[1] == [" 4<|im_end|>", " 5<|im_end|>"]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Hi", "Hi you", "Bye"),
        ("How do you do?", "How do you do? Fine", "Fine"),
        ("Hi", "Hi! How are you?", "Hi there"),
        ("Hi", "History", "Highway"),
        ("What is a number", "What is a numbered list? That", "What is a number? That"),
        ("Say yes.", "Say yes.", "Say yes. No"),
    ],
)
def test_what_may_begin_like_the_prompt_by_chance_is_kept_and_counted(run, prompt, chosen, rejected):
    others = [{"prompt": p, "chosen": "a", "rejected": "b"} for p in ("q", "r")]
    tokens = run([{"prompt": prompt, "chosen": chosen, "rejected": rejected}, *others], chat=True)
    assert shown(tokens)[1] == [f"{chosen}<|im_end|>", f"{rejected}<|im_end|>"]
    assert tokens.report.notes[BY_CHANCE].rows == [0]


def test_transcripts_with_several_turns(run):
    said = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: 2+2?\n\nAssistant:"
    prompt, scored = shown(run([{"chosen": said + " 4", "rejected": said + " 5"}], kind="preference", chat=True))
    assert prompt.endswith(
        "user\nhi<|im_end|>\n<|im_start|>assistant\nyes?<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert scored == ["4<|im_end|>", "5<|im_end|>"]
    with pytest.raises(
        DataError, match=r"nothing tells where the user's turn ends; give a column `prompt`, or messages"
    ):
        run([{"chosen": "2+2? It is 4", "rejected": "2+2? It is 5"}], chat=True)
    prefix, scored = shown(run([{"chosen": "2+2? It is 4", "rejected": "2+2? It is 5"}], chat=False))
    assert (prefix, scored) == ("2+2? It is", [" 4<|im_end|>", " 5<|im_end|>"])


# --- messages ---


def parsed(messages):
    report = DropReport("rows", 9)
    return list(parse_rows([{"messages": messages}], "sft", report)), report


def test_roles_that_nobody_knows_are_named():
    for role, reason in (
        ("critic", "the role 'critic' must be one of: system, user"),
        ("asistant", "did you mean 'assistant'"),
    ):
        _, report = parsed([USER, {"role": role, "content": "x"}, ANSWER])
        assert reason in str(report)
        assert "(row 0)" in str(report)
    _, report = parsed([USER, {"from": "function_call", "value": '{"a": 1}'}, ANSWER])
    assert "must be JSON with `name` and `arguments`" in str(report)


def test_calls_in_every_form_are_the_same_call():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    text = '{"name": "add", "arguments": {"a": 2}}'
    forms = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 2}'}}]},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {"a": 2, "city": None}}]},
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 2}'}},
        {"from": "function_call", "value": text},
    ]
    for form in forms:
        (row,), _ = parsed([USER, form, {"role": "observation", "content": "2"}, ANSWER])
        assert row.completions[0][:2] == (
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "2"},
        )


def test_nulls_that_arrow_puts_into_structs_are_taken_out():
    calls = [{"name": "add", "arguments": {"a": 2}}, {"name": "rain", "arguments": {"city": "Bern"}}]
    table = pa.Table.from_pylist(
        [{"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]} for call in calls]
    )
    rows = datasets.Dataset(table)
    assert rows[0]["messages"][1]["tool_calls"][0]["arguments"] == {"a": 2, "city": None}
    read = list(parse_rows(rows, "sft", DropReport("rows", 9)))
    assert [row.completions[0][0]["tool_calls"][0]["function"] for row in read] == calls


def test_weights_of_messages():
    bad, good = ANSWER | {"content": "5", "weight": 0.0}, ANSWER | {"weight": 1}
    (row,), _ = parsed([USER, bad, USER, good])
    assert row.completions[0] == (ANSWER | {"content": "5", "weight": 0}, USER, ANSWER)
    _, report = parsed([USER, bad])
    assert "all assistant turns have weight 0" in str(report)
    with pytest.raises(DataError, match=r"`weight` of a message must be 0 or 1, found 0\.5"):
        parsed([USER, ANSWER | {"weight": 0.5}])


@pytest.mark.parametrize(
    "off", [{"train": False}, {"loss": False}, {"training": "false"}, {"weight": "0"}, {"weight": False}]
)
def test_turns_that_other_trainers_leave_out_are_not_scored(run, off):
    on = {key: {"0": "1", "false": "true"}.get(value, True) for key, value in off.items()}
    (row,), report = parsed([USER, ANSWER | off, USER, ANSWER | on])
    assert row.completions[0] == (ANSWER | {"weight": 0}, USER, ANSWER)
    assert not report.notes
    (example,) = run([{"messages": [USER, ANSWER | {"content": "5"} | off, USER, ANSWER | on]}], chat=True)
    assert text_by_role(TOY, example, ROLE_ANSWER, 0) == "4<|im_end|>"


def test_keys_of_scoring_that_are_not_read_are_named():
    (row,), report = parsed([USER, ANSWER | {"mask": False, "train": [1], "weight": ""}])
    assert row.completions[0][0].get("weight") is None
    assert "kept, not read in messages: 'train', 'mask'; `weight: 0` says" in str(report)
    rows, report = parsed([USER, ANSWER | {"content": float("nan")}])
    assert not rows
    assert list(report.dropped) == ["empty assistant turn"]


def test_content_in_parts_and_numbers():
    (row,), _ = parsed(
        [{"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]}, ANSWER]
    )
    assert row.prompt == (USER,)
    (row,), _ = parsed([USER, {"role": "assistant", "content": 4}])
    assert row.completions == ((ANSWER,),)


# --- texts that have been rendered, long ones, held-out ones ---


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (True, True)])
def test_rendered_text_without_a_chat_has_one_beginning_and_one_end(run, bos, eos):
    tokenizer = build(bos=bos, eos=eos)
    row = {"prompt": "<|startoftext|>How many?", "completion": " 12<|im_end|>\n"}
    tokens, _ = whole(run([row], tokenizer)[0])
    assert tokenizer.decode(tokens) == "<|startoftext|>How many? 12<|im_end|>\n" + ("<|im_end|>" if eos else "")
    row["completion"] = " 12<|im_end|>"
    assert tokenizer.decode(whole(run([row], tokenizer)[0])[0]) == "<|startoftext|>How many? 12<|im_end|>"


def test_a_row_of_too_many_characters_is_dropped_before_it_is_tokenised(run, monkeypatch):
    encoded = []
    call = Encoder.__call__
    monkeypatch.setattr(Encoder, "__call__", lambda self, texts: encoded.extend(texts) or call(self, texts))
    rows = [{"prompt": "p q", "completion": "1" * 10**6}, {"prompt": "p q", "completion": "1"}]
    tokens = run(rows, max_length=50)
    assert [len(text.text) for text in encoded] == [4]
    assert tokens.report.dropped["longer than 50 tokens"].rows == [0]
    assert len(run([{"prompt": "p q", "completion": "1" * 46}], max_length=50)) == 1


def test_held_out_examples_that_are_trained_on_are_counted(run):
    rows = [{"prompt": f"{n}+2?", "chosen": f"{n + 2}", "rejected": "9"} for n in range(6)]
    train = run(rows[:5])
    held_out = run([*rows[3:], rows[0] | {"rejected": "8"}])
    assert shared_examples(train, held_out) == 2
    assert shared_examples(held_out, train) == 2
