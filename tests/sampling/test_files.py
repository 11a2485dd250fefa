"""Prompts from files, results into them, a conversation."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from smallr.core.errors import UserError
from smallr.sampling.chat import converse
from smallr.sampling.completions import Delta
from smallr.sampling.files import as_requests, read_prompts, write_results
from smallr.sampling.requests import Result, Sample, SamplingParams, TokenLogprob, Usage
from tests.runs import ROOT, environment

PARAMS = SamplingParams(max_tokens=3)


def test_prompts_of_every_form(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("one\n\n two\n")
    assert [request.prompt for request in as_requests(read_prompts(str(text)), PARAMS, chat=False)] == ["one", " two"]
    (first, _) = as_requests(read_prompts(str(text)), PARAMS, chat=True)
    assert first.messages == ({"role": "user", "content": "one"},)
    rows = [{"prompt": "p"}, {"prompt": [1, 2]}, {"messages": [{"role": "system", "content": "s"}]}]
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    plain, ids, chat = as_requests(read_prompts(str(lines)), PARAMS, chat=False)
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
        read_prompts(str(path))
    with pytest.raises(UserError, match="there is no file"):
        read_prompts(str(tmp_path / "none.txt"))


def generate(*flags: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "smallr.cli.generate", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True, timeout=300, **options)


def test_generate_reads_the_prompts_before_it_opens_the_model(tmp_path):
    bad, good = tmp_path / "bad.jsonl", tmp_path / "good.txt"
    bad.write_text('{"prompt": 5}')
    good.write_text("one")
    cases = {
        (f"--prompts={bad}",): "bad.jsonl, line 1: `prompt` is neither",
        (f"--prompts={good}", f"--out={tmp_path}/nowhere/a.jsonl"): "--out: there is no folder",
    }
    for flags, message in cases.items():
        done = generate("--model=no-such-model", *flags)
        assert done.returncode == 1
        assert message in done.stderr, done.stderr


def test_generate_writes_a_line_a_prompt(tmp_path):
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    files = [f"--prompts={tmp_path}/prompts.txt", f"--out={tmp_path}/out.jsonl"]
    how = ["--chat=false", "--max_tokens=3", "--n=2", "--temperature=1", "--slots=4", "--ignore_eos"]
    done = generate("--model=tiny-random", *files, *how)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["one", "two"]
    assert [[len(sample["token_ids"]) for sample in line["samples"]] for line in lines] == [[3, 3], [3, 3]]


def test_results_are_lines_of_json(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo")
    requests = as_requests(read_prompts(str(path)), PARAMS, chat=False)
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
