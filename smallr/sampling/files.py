"""Reads prompts from files and writes results into them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from smallr.core.errors import UserError
from smallr.data.errors import DataError
from smallr.data.files import Record, format_of, json_records, read_lines, read_records
from smallr.data.messages import Unusable, text_or_chat
from smallr.data.values import Cell
from smallr.sampling.requests import Request, Result, SamplingParams

Prompt = str | list[int] | tuple[dict[str, str], ...]  # text, token ids or messages


def read_prompts(name: str) -> list[tuple[str, Prompt]]:
    """Reads the prompts of a file, each with the place where it stands: the file and its line or row.

    Args:
      name: `-` for standard input; a file of rows (JSON, JSON lines, Parquet, CSV; packed or not) has a `prompt` (string
        or token ids), `messages` or a `question` in each; any other file has a prompt in each line that is not empty.

    Raises:
      UserError: no such file, or a row without a prompt, by its place.
    """
    if name != "-" and not Path(name).is_file():
        raise UserError(f"--prompts: there is no file {name}")
    prompts = [(place, _parsed(row, place)) for place, row in _rows(name)]
    if not prompts:
        raise UserError(f"--prompts: {name} has no prompt")
    return prompts


def as_requests(prompts: Sequence[Prompt], params: SamplingParams, *, chat: bool) -> list[Request]:
    """Returns a request for each prompt; with `chat` a plain one is a user's message."""
    return [_request(prompt, params, chat) for prompt in prompts]


def read_questions(name: str) -> list[str]:
    """Returns the prompts of a file as texts.

    Raises:
      UserError: as `read_prompts`, or a prompt that is no text.
    """
    prompts = read_prompts(name)
    if wrong := [place for place, prompt in prompts if not isinstance(prompt, str)]:
        raise UserError(f"{wrong[0]}: `prompt` must be a string here, a question without anything around it")
    return [prompt for _, prompt in prompts]


def _rows(name: str) -> Iterator[tuple[str, Any]]:
    """Yields the rows of a file, or the lines of a text."""
    kind = format_of(name)
    if kind == "parquet":
        from smallr.data.tables import read_table  # with pandas and pyarrow

        yield from ((f"{name}, row {number}", row) for number, row in enumerate(read_table([name], name)))
    elif kind is not None:
        yield from _values(read_records(name, surrogates=True))
    else:
        lines = read_lines(name)
        first = next(((number, line) for number, line in lines if line.strip()), None)
        if first is None:
            return
        lines = itertools.chain([first], lines)
        if name == "-" and first[1].lstrip().startswith("{"):
            yield from _values(json_records(name, lines, surrogates=True))
        else:
            yield from ((f"{name}, line {number}", line) for number, line in lines if line.strip())


def _values(records: Iterable[Record]) -> Iterator[tuple[str, Any]]:
    """Yields the rows of records; half of a surrogate pair is left for the request that has it to fail."""
    return ((record.place, record.value) for record in records)


def _parsed(row: Any, place: str) -> Prompt:
    if isinstance(row, str):
        return row
    given = [name for name in ("prompt", "messages", "question") if row.get(name) not in (None, "", [])]
    if not given or (len(given) > 1 and given != ["prompt", "question"]):
        raise UserError(f"{place}: expected either a `prompt`, `messages` or a `question`")
    value = row[given[0]]
    if given[0] == "messages":
        return _messages(value, place)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return _messages(value, place)
    if not isinstance(value, str) and not (isinstance(value, list) and all(type(id) is int for id in value)):
        raise UserError(f"{place}: `{given[0]}` is neither a string nor a list of token ids")
    return value


def _messages(value: Any, place: str) -> tuple[dict[str, str], ...]:
    said = isinstance(value, list) and all(
        isinstance(message, dict) and any(message.get(key) is not None for key in ("content", "value", "tool_calls"))
        for message in value
    )
    try:
        messages = text_or_chat(value, Cell(place, "messages"))
    except (DataError, Unusable) as error:
        raise UserError(
            f"{place}: `messages` is not a list of objects with the strings `role` and `content`: {error}"
        ) from error
    if any("tool_calls" in message for message in messages if said):
        raise UserError(f"{place}: calls of tools in a prompt are not supported")
    if not said:
        raise UserError(f"{place}: `messages` is not a list of objects with the strings `role` and `content`")
    return tuple({key: message[key] for key in ("role", "content")} for message in messages)


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


def write_results(
    requests: Sequence[Request],
    results: Iterable[Result],
    out: TextIO,
    extra: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> None:
    """Writes a line of JSON for each request; `extra` are further fields of each sample, or none."""
    for index, (request, result) in enumerate(zip(requests, results, strict=True)):
        asked = {"messages": list(request.messages)} if request.messages else {"prompt": request.prompt}
        samples = [_sample(sample) for sample in result.samples]
        for sample, fields in zip(samples, extra[index] if extra else (), strict=False):
            sample |= fields
        usage = {"prompt_tokens": result.usage.prompt_tokens, "completion_tokens": result.usage.completion_tokens}
        row = asked | {"samples": samples, "usage": usage} | ({"error": result.error} if result.error else {})
        write_row(row, out)


def write_row(row: Mapping[str, Any], out: TextIO) -> None:
    """Writes a line of JSON, in ASCII where the file cannot hold what is in it.

    That is half a surrogate pair in a prompt, or a terminal that knows ASCII alone.
    """
    line = json.dumps(row, ensure_ascii=False)
    out.write((line if _can_hold(out, line) else json.dumps(row)) + "\n")


def _can_hold(out: TextIO, text: str) -> bool:
    try:
        text.encode(out.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def write_texts(requests: Sequence[Request], results: Iterable[Result], out: TextIO) -> None:
    """Writes the completions as text, for people: one prompt's alone, several prompts' each behind its prompt."""

    def write(text: str) -> None:
        encoding = out.encoding or "utf-8"
        out.write(text if _can_hold(out, text) else text.encode(encoding, "backslashreplace").decode(encoding))

    for request, result in zip(requests, results, strict=True):
        if len(requests) > 1:
            asked = request.messages[-1]["content"] if request.messages else request.prompt
            write(f"> {asked}\n")
        for sample in result.samples:
            write(sample.text.strip() + "\n")
        if result.error:
            write(f"[{result.error}]\n")
        if len(requests) > 1:
            out.write("\n")
        out.flush()


def _sample(sample: Any) -> dict[str, Any]:
    row = {"text": sample.text, "finish_reason": sample.finish_reason, "token_ids": list(sample.token_ids)}
    if sample.logprobs is not None:
        row["logprobs"] = [[each.logprob, [list(pair) for pair in each.top]] for each in sample.logprobs]
    return row
