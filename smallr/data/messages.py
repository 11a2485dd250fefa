"""Brings the messages of chats into one form, whichever of the common forms a data set has.

A message is `{role, content, …}` with the roles system, user, assistant and tool; calls of tools are in `tool_calls`,
as `{type, id, function: {name, arguments}}` with arguments as an object. `weight: 0` says that an assistant's turn is
not scored, and so does `train`, `training` or `loss` that is false. Read are also `from`/`value` (ShareGPT),
`function_call`, content in parts of text, and transcripts of lines that begin with "Human:" and "Assistant:".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from smallr.data.errors import nearest, shorten
from smallr.data.files import parse_json
from smallr.data.values import LABELS, Cell, as_text, kind_of

Message = Mapping[str, Any]
Text = str | tuple[Message, ...]

# Roles as other tools name them.
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
_KNOWN = ("system", "user", "assistant", "tool", "developer", "ipython")
_CALLS = ("function_call", "tool_call")
_SWITCHES = ("train", "training", "loss")  # of other trainers: whether a turn is scored
# What other trainers read of a message and nothing here does; `mask` means scored to some and left out to others.
_UNREAD = ("mask", "train_detail")
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


class Unusable(Exception):
    """Says that a single row is dropped; its message is the reason."""


def text_or_chat(value: Any, cell: Cell) -> Text:
    """Reads text, or messages; null is empty text.

    Raises:
      DataError: anything else.
      Unusable: a role that is not known, a call of a tool that cannot be read.
    """
    value = as_text(value)
    if value is None or isinstance(value, str):
        return value or ""
    messages = value
    if isinstance(value, Mapping):  # one message, or the columns of a list of them, as TFDS and old Arrow files have it
        is_table = value and all(isinstance(items, Sequence) and not isinstance(items, str) for items in value.values())
        messages = (
            [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
            if is_table
            else [value]
        )
    if not isinstance(messages, Sequence) or not all(isinstance(message, Mapping) for message in messages):
        raise cell.error(
            f"expected text or a list of messages {{role, content}}, found {kind_of(value)} {shorten(value)}"
        )
    return tuple(_message(message, cell) for message in messages)


def as_chat(text: Text, role: str) -> tuple[Message, ...]:
    """Wraps text in a message; messages stay."""
    return ({"role": role, "content": text},) if isinstance(text, str) else text


def without_nulls(value: Any) -> Any:
    """Takes out the fields that are null: Arrow puts them where another row has a field."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def read_tools(value: Any, cell: Cell) -> tuple[dict[str, Any], ...]:
    """Reads definitions of tools: a list of objects, or that list as JSON text.

    Raises:
      DataError: neither.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value) if value.strip() else None
        except ValueError as error:
            raise cell.error(f"expected a list of tools, or one as JSON text: {error}") from error
    else:
        value = without_nulls(value)
    if value is None:
        return ()
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list):
        raise cell.error(f"expected a list of tools, found {kind_of(value)} {shorten(value)}")
    try:
        tools = [parse_json(tool) if isinstance(tool, str) else tool for tool in value]
    except ValueError as error:
        raise cell.error(
            f"expected a list of objects, or of each as JSON text: {error}; found {shorten(value)}"
        ) from error
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise cell.error(f"expected a list of objects, found {shorten(value)}")
    return tuple(dict(tool) for tool in tools)


def transcript(text: str) -> tuple[Message, ...] | None:
    """Reads the turns of a transcript "Human: … Assistant: …"; None for any other text.

    The turn that is opened at its end is not there: it is what comes next.
    """
    begin = _TURN.match(text.lstrip("\n ")) if "Assistant:" in text else None
    if begin is None:
        return None
    pieces = _TURN.split(text.lstrip("\n "))
    if "Assistant" not in pieces[1::2] or "Human" not in pieces[1::2]:
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[speaker], "content": said.strip()}
        for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns.pop()
    return tuple(turns)


def opened(prompt: Text) -> bool:
    """Returns whether a prompt ends in an answer that has begun."""
    return not isinstance(prompt, str) and bool(prompt) and prompt[-1]["role"] == "assistant"


def is_said(message: Message) -> bool:
    """Returns whether there is anything in a message: text, or a call."""
    return bool(message["content"].strip() or message.get("tool_calls"))


def is_scored(message: Message) -> bool:
    """Returns whether a message is the assistant's, and not of weight 0."""
    return message["role"] == "assistant" and message.get("weight") != 0


def _message(message: Message, cell: Cell) -> Message:
    """Returns a message in our form. Null fields, which Arrow puts where another message has a field, are left out."""
    message = without_nulls(message)
    if "from" in message and "value" in message:
        role, content = message.pop("from"), message.pop("value")
        message = {"role": role, "content": content, **message}
    role = message.get("role")
    if not isinstance(role, str):
        raise cell.error(f"a message needs `role` and `content`, found {shorten(message)}")
    if role in _CALLS:
        message = {"role": "assistant", "content": "", "tool_calls": _calls_of_text(message.get("content"), cell)}
    else:
        message["role"] = _ROLES.get(role, role)
    if message["role"] not in _KNOWN:
        known = ("system", "user", "assistant", "tool", *_ROLES)
        raise Unusable(f"the role {role!r} must be one of: {', '.join(known[:4])}{nearest(role, known)}")
    message["content"] = _content(message.get("content", ""), message, cell)
    calls = [*message.pop("tool_calls", ()), *filter(None, [message.pop("function_call", None)])]
    if calls:
        message["tool_calls"] = [_call(call, cell) for call in calls]
    return _weighted(message, cell)


def _content(content: Any, message: Message, cell: Cell) -> str:
    """Returns the text, also where it comes in parts."""
    content = as_text(content)
    if content is None:
        return ""
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise cell.error(f"`content` of a message must be text, found {kind_of(content)} {shorten(message)}")
    return content


def _weighted(message: Message, cell: Cell) -> Message:
    """Keeps a weight of 0 alone, also where it is spelled otherwise: 1 is what a turn has anyway."""
    weights = [_switch(message[key]) for key in _SWITCHES if key in message]
    weight = as_text(message.get("weight"))
    if isinstance(weight, str) and weight.strip():
        if (found := _switch(weight)) is None:
            raise cell.error(f"`weight` of a message must be 0 or 1, found {shorten(message['weight'])}")
        weights.append(found)
    elif weight is not None and not isinstance(weight, str):
        raise cell.error(f"`weight` of a message must be 0 or 1, found {shorten(weight)}")
    read = {"weight", *(key for key in _SWITCHES if key in message and _switch(message[key]) is not None)}
    rest = {key: value for key, value in message.items() if key not in read}
    return rest | ({"weight": 0} if 0 in weights else {})


def _switch(value: Any) -> float | None:
    """Returns 1 for true and 0 for false, however they are written; None for anything else."""
    return LABELS.get(str(value).strip().lower())


def unread_keys(messages: Text) -> tuple[str, ...]:
    """Returns the keys of messages that say what is scored and are not read."""
    if isinstance(messages, str):
        return ()
    return tuple(key for key in (*_SWITCHES, *_UNREAD) if any(key in message for message in messages))


def _call(call: Any, cell: Cell) -> dict[str, Any]:
    """Returns a call as templates take it: with a function, whose arguments are an object."""
    if isinstance(call, Mapping) and "function" not in call and "name" in call:
        call = {"type": "function", "function": dict(call)}
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise cell.error(f"a tool call needs a function with a name and arguments, found {shorten(call)}")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _object_of(arguments)
    return {"type": "function", **call, "function": {"name": function["name"], "arguments": arguments}}


def _object_of(text: str) -> Any:
    try:
        value = parse_json(text) if text.strip() else {}
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _calls_of_text(text: Any, cell: Cell) -> list[Any]:
    """Calls as ShareGPT's `function_call` has them: JSON text of {name, arguments}, or of a list of them."""
    try:
        calls = parse_json(text) if isinstance(text, str) else text
    except ValueError:
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) and ("name" in call or "function" in call) for call in calls):
        raise Unusable("a turn of the role 'function_call' must be JSON with `name` and `arguments`")
    return calls
