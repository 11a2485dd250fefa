"""Checks every HTTP request before its fields are looked at: host, content type, size, and sound JSON."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Collection, Iterator
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from smallr.language.serving.errors import CLIENT_LEFT, BadRequest

MAX_BODY_BYTES = 4 * 2**20
MAX_DEPTH = 64
MAX_DIGITS = 1000  # of a whole number
MAX_KEYS = 1000  # of one object
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")

# A string (also one without its end, so that no search begins twice), or brackets.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)
_SMALL = 2**16  # characters of a body that is parsed on the event loop's own thread


class HostGuard:
    """Refuses requests whose Host header names none of the allowed hosts.

    A web page cannot choose that header. So a page whose name was made to resolve to this machine (DNS rebinding) is
    refused.

    Args:
      app: the application behind.
      allowed: names or addresses without a port; empty allows all.
      advice: what a user can do, for the message.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str], advice: str = "--allowed_hosts=HOST would allow it"):
        self._app, self._allowed = app, {host.lower().strip("[]") for host in allowed}
        self._advice = advice

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._allowed:
            host = _host(dict(scope["headers"]).get(b"host", b"").decode("latin-1"))
            if host not in self._allowed:
                error = BadRequest(
                    f"Host: {host!r} is not a name of this server; {self._advice.replace('HOST', host)}",
                    status=403,
                    code="host_not_allowed",
                )
                await JSONResponse(error.body(), error.status)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _host(header: str) -> str:
    """Takes the port and the brackets of an IPv6 address off a Host header."""
    name = header.rpartition("]")[0].strip("[") if header.startswith("[") else header.partition(":")[0]
    return name.lower()


def served_hosts(host: str, allowed: Collection[str]) -> tuple[str, ...]:
    """Returns the Host headers to serve for an address to listen at; none to serve them all."""
    is_loopback = host == "localhost" or host.startswith("127.") or host == "::1"
    return (*LOOPBACK_HOSTS, host, *allowed) if is_loopback or allowed else ()


async def read_fields(http: HttpRequest, max_bytes: int = MAX_BODY_BYTES) -> dict[str, Any]:
    """Reads the JSON object in the body of a request.

    Raises:
      BadRequest: 415 for another content type, which a web page may send without asking; 413 for a body that is too
        large; 400 for one that is no JSON object, is nested too deeply or holds text that is no Unicode.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise BadRequest(f"Content-Type must be application/json, not {kind!r}", status=415)
    body = await _body(http, max_bytes)
    return _parse(body) if len(body) < _SMALL else await asyncio.to_thread(_parse, body)


async def _body(http: HttpRequest, max_bytes: int) -> bytes:
    parts, size = [], 0
    try:
        async for part in http.stream():
            size += len(part)
            if size > max_bytes:
                raise BadRequest(f"the body has more than {max_bytes} bytes", status=413)
            parts.append(part)
    except ClientDisconnect:
        raise BadRequest("the client left in the middle of the body", status=CLIENT_LEFT) from None
    return b"".join(parts)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        text = body.decode("utf-8-sig")
        _check_depth(text)
        fields = json.loads(text, parse_constant=float, parse_int=_whole)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object")
    for place, problem in _problems(fields, ()):
        raise BadRequest(f"{'.'.join(place)}: {problem}", param=place[0] if place else None)
    return fields


def _whole(digits: str) -> int | float:
    """Reads a whole number; one of thousands of digits is infinite, and refused with its field like infinity."""
    return int(digits) if len(digits) <= MAX_DIGITS else math.inf


def _check_depth(text: str) -> None:
    """Refuses deep nesting before a parser, which recurses, sees it."""
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        if match[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        elif match[0] in "]}":
            depth -= 1


def _problems(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields the texts that no tokenizer and no reply can take, and objects that are too large."""
    if isinstance(value, str):
        if not value.isascii() and (lone := _lone_surrogate(value)):
            yield place, f"holds U+{lone}, half of a surrogate pair (a cut emoji?), which is no text"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield place, "NaN, infinity and numbers of thousands of digits are not accepted"
    elif isinstance(value, dict):
        if len(value) > MAX_KEYS:
            yield place, f"has {len(value)} keys, more than {MAX_KEYS}"
        for key, item in value.items():
            name = (*place, key.encode("ascii", "backslashreplace").decode()[:100])
            yield from _problems(key, name)
            yield from _problems(item, name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, str | dict | list | float):
                yield from _problems(item, (*place, str(index)))


def _lone_surrogate(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{ord(text[error.start]):04X}"
    return ""
