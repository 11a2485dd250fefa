"""Reads prompts from files and writes results into them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from smallr.core.errors import UserError
from smallr.sampling.requests import Request, Result, SamplingParams

Prompt = str | list[int] | tuple[dict[str, str], ...]  # text, token ids or messages


def read_prompts(name: str) -> list[Prompt]:
    """The prompts of a file.

    Args:
      name: `-` for standard input; `.jsonl` has a `prompt` (string or token ids), a `question` or `messages` in each line;
        any other file has a prompt in each line that is not empty.

    Raises:
      UserError: no such file, or a line without a prompt, by its number.
    """
    return [prompt for _, prompt in _prompts(name)]


def as_requests(prompts: Sequence[Prompt], params: SamplingParams, *, chat: bool) -> list[Request]:
    """Returns a request for each prompt; with `chat` a plain one is a user's message."""
    return [_request(prompt, params, chat) for prompt in prompts]


def read_questions(name: str) -> list[str]:
    """The prompts of a file as texts.

    Raises:
      UserError: as `read_prompts`, or a prompt that is no text.
    """
    prompts = _prompts(name)
    if wrong := [place for place, prompt in prompts if not isinstance(prompt, str)]:
        raise UserError(f"{wrong[0]}: `prompt` must be a string here, a question without anything around it")
    return [prompt for _, prompt in prompts]


def _prompts(name: str) -> list[tuple[str, Prompt]]:
    """(where it stands, prompt) of each."""
    path = Path(name)
    if name != "-" and not path.is_file():
        raise UserError(f"--prompts: there is no file {name}")
    text = sys.stdin.read() if name == "-" else path.read_text()
    lines = [(f"{name}, line {number}", line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"--prompts: {name} has no prompt")
    is_json = path.suffix == ".jsonl" or (name == "-" and lines[0][1].lstrip().startswith("{"))
    return [(place, _parsed(line, place) if is_json else line) for place, line in lines]


def _parsed(line: str, place: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON ({error})") from error
    names = [name for name in ("prompt", "question", "messages") if isinstance(row, dict) and row.get(name)]
    if "question" in names and len(names) > 1:  # of a data set that has both
        names.remove("question")
    if len(names) != 1:
        raise UserError(f"{place}: expected an object with `prompt`, `question` or `messages`")
    if "messages" not in names:
        prompt = row[names[0]]
        if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(id) is int for id in prompt)):
            raise UserError(f"{place}: `{names[0]}` is neither a string nor a list of token ids")
        return prompt
    messages = row["messages"]
    good = isinstance(messages, list) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in messages
    )
    if not good:
        raise UserError(f"{place}: `messages` is not a list of objects with the strings `role` and `content`")
    return tuple(messages)


def _request(prompt: Prompt, params: SamplingParams, chat: bool) -> Request:
    if isinstance(prompt, tuple):
        return Request(messages=prompt, params=params)
    if isinstance(prompt, list):
        return Request(prompt=tuple(prompt), params=params)
    return (
        Request(messages=({"role": "user", "content": prompt},), params=params)
        if chat
        else Request(prompt=prompt, params=params)
    )


def write_results(requests: Sequence[Request], results: Iterable[Result], out: TextIO) -> None:
    """Writes a line of JSON for each request."""
    for request, result in zip(requests, results, strict=True):
        asked = {"messages": list(request.messages)} if request.messages else {"prompt": request.prompt}
        samples = [_sample(sample) for sample in result.samples]
        usage = {"prompt_tokens": result.usage.prompt_tokens, "completion_tokens": result.usage.completion_tokens}
        row = asked | {"samples": samples, "usage": usage} | ({"error": result.error} if result.error else {})
        line = json.dumps(row, ensure_ascii=False)
        try:
            line.encode(out.encoding or "utf-8")
        except UnicodeEncodeError:  # half a surrogate pair in a prompt, or a terminal that knows ASCII alone
            line = json.dumps(row)
        out.write(line + "\n")


def write_texts(requests: Sequence[Request], results: Iterable[Result], out: TextIO) -> None:
    """The completions as text, for people: one prompt's alone, several prompts' each behind its prompt."""
    for request, result in zip(requests, results, strict=True):
        if len(requests) > 1:
            asked = request.messages[-1]["content"] if request.messages else request.prompt
            out.write(f"> {asked}\n")
        for sample in result.samples:
            out.write(sample.text.strip() + "\n")
        if result.error:
            out.write(f"[{result.error}]\n")
        if len(requests) > 1:
            out.write("\n")
        out.flush()


def _sample(sample: Any) -> dict[str, Any]:
    row = {"text": sample.text, "finish_reason": sample.finish_reason, "token_ids": list(sample.token_ids)}
    if sample.logprobs is not None:
        row["logprobs"] = [[each.logprob, [list(pair) for pair in each.top]] for each in sample.logprobs]
    return row
