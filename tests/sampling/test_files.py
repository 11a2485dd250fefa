"""Prompts from files, results into them, a conversation."""

from __future__ import annotations

import copy
import io
import json
from types import SimpleNamespace

import pytest
from tokenizers import Regex, pre_tokenizers

from smallr.cli.generate import flags, run
from smallr.cli.parsing import Parser
from smallr.core.errors import UserError
from smallr.data.encode import Encoder
from smallr.data.templates import DATE
from smallr.sampling.chat import converse
from smallr.sampling.completions import Delta
from smallr.sampling.files import as_requests, read_prompts, write_results
from smallr.sampling.requests import Request, Result, Sample, SamplingParams, TokenLogprob, Usage
from tests.sampling.models import engine, letters

PARAMS = SamplingParams(max_tokens=3)


def prompts(path) -> list:
    return [prompt for _, prompt in read_prompts(str(path))]


def test_prompts_of_every_form(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("one\n\n two\n")
    assert [request.prompt for request in as_requests(prompts(text), PARAMS, chat=False)] == ["one", " two"]
    (first, _) = as_requests(prompts(text), PARAMS, chat=True)
    assert first.messages == ({"role": "user", "content": "one"},)
    rows = [{"prompt": "p"}, {"prompt": [1, 2]}, {"messages": [{"role": "system", "content": "s"}]}]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    plain, ids, chat = as_requests(prompts(lines), PARAMS, chat=False)
    assert (plain.prompt, ids.prompt, chat.messages) == ("p", (1, 2), ({"role": "system", "content": "s"},))
    assert plain.params == PARAMS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no prompt"),
        ('{"prompt": "a"}\n{"prompt"', "line 2: not valid JSON"),
        ('{"text": "a"}', "line 1: expected either a `prompt`, `messages` or a `question`"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "line 1: expected either a `prompt`"),
        ('{"messages": [{"role": "assistant", "tool_calls": [{"name": "f"}]}]}', "line 1: calls of tools"),
        ('{"prompt": 5}', "line 1: `prompt` is neither"),
        ('{"messages": [{"role": "user"}]}', "line 1: `messages` is not a list"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_prompts(str(path))
    with pytest.raises(UserError, match="there is no file"):
        read_prompts(str(tmp_path / "none.txt"))


def generate(**values) -> None:
    parser = Parser("generate", "")
    flags(parser)
    run(parser.parse([f"--{name}={value}" for name, value in values.items()]))


def test_generate_reads_the_prompts_before_it_opens_the_model(tmp_path, monkeypatch):
    bad, good = tmp_path / "bad.jsonl", tmp_path / "good.txt"
    bad.write_text('{"prompt": 5}')
    good.write_text("one")
    monkeypatch.setattr("smallr.language.loading.load_engine", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1: `prompt` is neither"):
        generate(model="tiny-random", prompts=str(bad))
    with pytest.raises(UserError, match="--out: there is no folder"):
        generate(model="tiny-random", prompts=str(good), out=f"{tmp_path}/nowhere/a.jsonl")


@pytest.mark.parity
def test_generate_writes_a_line_a_prompt_and_an_error_where_there_is_none(tmp_path, monkeypatch, caplog):
    loaded = SimpleNamespace(engine=engine())
    monkeypatch.setattr("smallr.language.loading.load_engine", lambda *_, **__: loaded)
    rows = [
        {"prompt": "one"},
        {"prompt": "cut emoji \ud83d"},
        {"prompt": "x" * 400},
        {"prompt": [5, 101]},
        {"prompt": "two"},
    ]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    how = {"chat": False, "max_tokens": 3, "n": 2, "temperature": 1.0, "ignore_eos": True}
    for number, out in ((0, "a"), (0, "b"), (1, "c")):
        generate(model="tiny-random", prompts=f"{tmp_path}/prompts.jsonl", out=f"{tmp_path}/{out}", round=number, **how)
    lines = [json.loads(line) for line in (tmp_path / "a").read_text(encoding="utf-8").splitlines()]
    assert [line["prompt"] for line in lines] == [row["prompt"] for row in rows]
    assert [[len(sample["token_ids"]) for sample in line["samples"]] for line in lines] == [[3, 3], [], [], [], [3, 3]]
    for number, said in ((1, "surrogate pair"), (2, "400 tokens"), (3, "token id 101")):
        assert lines[number]["error"].startswith(f"{tmp_path}/prompts.jsonl, line {number + 1}: ")
        assert said in lines[number]["error"]
    assert "3 of 5 prompts have an error" in caplog.text
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


def test_results_are_lines_of_json(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo")
    requests = as_requests(prompts(path), PARAMS, chat=False)
    sample = Sample("ü", "stop", (7,), (TokenLogprob(7, "ü", -0.5, (("ü", -0.5),)),))
    out = io.StringIO()
    write_results(requests, [Result((sample,), Usage(4, 1)), Result(error="too long")], out)
    good, bad = map(json.loads, out.getvalue().splitlines())
    assert good["samples"] == [
        {"text": "ü", "finish_reason": "stop", "token_ids": [7], "logprobs": [[-0.5, [["ü", -0.5]]]]}
    ]
    assert (good["prompt"], good["usage"]) == ("one", {"prompt_tokens": 4, "completion_tokens": 1})
    assert (bad["error"], bad["samples"]) == ("too long", [])


def test_a_conversation_has_a_history_until_it_is_reset(capsys):
    asked = []

    def submit(request, on_delta):
        asked.append([message["content"] for message in request.messages])
        on_delta(Delta(0, "an"))
        on_delta(Delta(0, "swer", finish_reason="stop"))
        return SimpleNamespace(result=Result())

    lines = iter(["a", "b", "/reset", "", "c", "/exit", "d"])
    converse(SimpleNamespace(submit=submit), PARAMS, chat=True, read=lambda prompt: next(lines))
    assert asked == [["a"], ["a", "answer", "b"], ["c"]]
    assert capsys.readouterr().out == "answer\n" * 3


@pytest.mark.parity
def test_a_template_that_writes_todays_date_writes_a_fixed_one():
    template = "{{ strftime_now('%d %B %Y') }}: {{ messages[0].content }}"
    request = Request(messages=({"role": "user", "content": "hi"},), params=PARAMS)
    tokenizer = copy.deepcopy(letters())
    tokenizer.chat_template = template
    texts = [
        tokenizer.decode(engine(tokenizer=tokenizer, **options).encode(request).prompt)
        for options in ({}, {"date": "2025-01-31"})
    ]
    assert texts == ["26 July 2024: hi", "31 January 2025: hi"]
    with pytest.raises(UserError, match="date 'today': expected year-month-day, like 2024-07-26"):
        engine(date="today")
    parser = Parser("generate", "")
    flags(parser)
    assert parser.parse([]).date == DATE


@pytest.mark.parity
def test_a_regular_expression_that_backtracks_forever_fails_its_request_alone():
    tokenizer = copy.deepcopy(letters())
    slow = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([slow, backend.pre_tokenizer])
    writer = engine(tokenizer=tokenizer)
    results = writer.generate([Request(prompt=text, params=PARAMS) for text in ("a" * 40 + "X", "aaX")])
    assert results[0].error.startswith("prompt: the tokenizer fails: ")
    assert len(results[1].samples) == 1
    encode = Encoder(writer.tokenizer)
    with pytest.raises(UserError, match=r"1 texts, of which the first begins with 'aaa.*: the tokenizer fails: "):
        encode.prompts(["a" * 40 + "X"], is_chat=False)
