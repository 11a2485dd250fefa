"""Prompts from files, results into them, a conversation."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

from smallr.errors import UserError
from smallr.sampling.chat import converse
from smallr.sampling.completions import Delta
from smallr.sampling.files import read_requests, write_results
from smallr.sampling.requests import Result, Sample, SamplingParams, TokenLogprob, Usage

PARAMS = SamplingParams(max_tokens=3)


def test_prompts_of_every_form(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("one\n\n two\n")
    assert [request.prompt for request in read_requests(str(text), PARAMS, chat=False)] == ["one", " two"]
    (first, _) = read_requests(str(text), PARAMS, chat=True)
    assert first.messages == ({"role": "user", "content": "one"},)
    rows = [{"prompt": "p"}, {"prompt": [1, 2]}, {"messages": [{"role": "system", "content": "s"}]}]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    plain, ids, chat = read_requests(str(lines), PARAMS, chat=False)
    assert (plain.prompt, ids.prompt, chat.messages) == ("p", (1, 2), ({"role": "system", "content": "s"},))
    assert plain.params == PARAMS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no prompt"),
        ('{"prompt": "a"}\n{"prompt"', "line 2: not valid JSON"),
        ('{"question": "a"}', "line 1: expected an object with either `prompt` or `messages`"),
        ('{"prompt": 5}', "line 1: `prompt` is neither"),
        ('{"messages": [{"role": "user"}]}', "line 1: `messages` is not a list"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_requests(str(path), PARAMS, chat=True)
    with pytest.raises(UserError, match="there is no file"):
        read_requests(str(tmp_path / "none.txt"), PARAMS, chat=True)


def test_results_are_lines_of_json(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo")
    requests = read_requests(str(path), PARAMS, chat=False)
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
