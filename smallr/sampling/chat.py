"""Holds a conversation at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable

from smallr.sampling.engine import Engine
from smallr.sampling.requests import Request, SamplingParams

HELP = "/reset forgets the conversation, /exit ends it"


def converse(engine: Engine, params: SamplingParams, *, chat: bool, read: Callable[[str], str] = input) -> None:
    """Reads lines and streams answers until /exit or the end of the input.

    Args:
      engine: with one decode slot or more.
      params: of every answer.
      chat: lines and answers are a conversation with history; else each line is continued by itself.
      read: gives a line, from its prompt.
    """
    print(HELP, file=sys.stderr)
    history: list[dict[str, str]] = []
    while True:
        try:
            line = read("> ").strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line == "/reset":
            history.clear()
        elif line:
            asked = [*history, {"role": "user", "content": line}]
            request = Request(messages=tuple(asked), params=params) if chat else Request(prompt=line, params=params)
            answer = _streamed(engine, request)
            if answer is not None:
                history = [*asked, {"role": "assistant", "content": answer}]


def _streamed(engine: Engine, request: Request) -> str | None:
    """Prints an answer while it grows and returns it, or None. Ctrl-C ends the answer, not the conversation."""
    parts: list[str] = []

    def show(delta) -> None:
        parts.append(delta.text)
        print(delta.text, end="", flush=True)

    handle = engine.submit(request, on_delta=show)
    try:
        while handle.result is None:
            engine.step()
    except KeyboardInterrupt:
        engine.cancel(handle)
    print()
    if handle.result.error and not parts:
        print(f"smallr: {handle.result.error}", file=sys.stderr)
        return None
    return "".join(parts)
