"""Serves the page of a review on this machine alone, behind a token that stands in its address."""

from __future__ import annotations

import importlib.resources
import secrets
import webbrowser
from collections.abc import Mapping
from typing import Any

from absl import logging
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smallr.core.errors import UserError
from smallr.language.serving.border import LOOPBACK_HOSTS, HostGuard, read_fields
from smallr.language.serving.errors import BadRequest
from smallr.language.serving.run import Server, bind
from smallr.review.queues import Filter
from smallr.review.session import ChangedError, Session

_FILES = {"": ("index.html", "text/html"), "review.css": ("review.css", "text/css")}
_FILES |= {"review.js": ("review.js", "text/javascript")}
# Nothing from elsewhere is loaded, no text can become a script, no other page may frame this one or learn its address.
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class TokenGuard:
    """Serves an application below `/TOKEN/` alone, and sends headers that keep other pages out.

    Args:
      app: the application behind, which sees paths without the token.
      token: compared in constant time.
      ticket: leads from `/TICKET/` to the token, once; empty: none.
    """

    def __init__(self, app: ASGIApp, token: str, ticket: str = ""):
        self._app, self._token, self._ticket = app, token.encode(), ticket.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request pass if its path begins with the token; others get 403, whatever they ask for."""
        if scope["type"] != "http":
            return
        given, mark, rest = scope["path"].removeprefix("/").partition("/")

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        if secrets.compare_digest(given.encode("utf-8", "replace"), self._token):
            if not mark:  # without it the page would look for its parts beside the token, not below it
                await RedirectResponse(f"/{self._token.decode()}/")(scope, receive, sent)
                return
            inner = {**scope, "path": f"/{rest}", "raw_path": f"/{rest}".encode()}
            await self._app(inner, receive, sent)
            return
        if self._ticket and secrets.compare_digest(given.encode("utf-8", "replace"), self._ticket):
            self._ticket = b""
            await RedirectResponse(f"/{self._token.decode()}/")(scope, receive, sent)
            return
        error = BadRequest("the address lacks the token that smallr review has printed", status=403, code="token")
        await JSONResponse(error.body(), error.status)(scope, receive, sent)


def make_app(session: Session, token: str, ticket: str = "") -> ASGIApp:
    """Builds the application: the page, and what it asks for; see `TokenGuard` for token and ticket."""
    app = FastAPI(title="smallr review", openapi_url=None)
    _add_files(app)
    _add_routes(app, session)

    @app.exception_handler(BadRequest)
    async def bad_request(_: HttpRequest, error: BadRequest) -> Response:
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(UserError)
    async def user_error(http: HttpRequest, error: UserError) -> Response:
        return await bad_request(http, BadRequest(str(error)))

    @app.exception_handler(ChangedError)
    async def changed(http: HttpRequest, error: ChangedError) -> Response:
        return await bad_request(http, BadRequest(str(error), status=409, code="changed"))

    @app.exception_handler(Exception)
    async def unexpected(http: HttpRequest, error: Exception) -> Response:
        logging.error("a request failed", exc_info=error)
        return await bad_request(http, BadRequest(f"this request failed: {type(error).__name__}", status=500))

    return HostGuard(
        TokenGuard(app, token, ticket), LOOPBACK_HOSTS, advice="open the address that smallr review has printed"
    )


def _add_files(app: FastAPI) -> None:
    folder = importlib.resources.files("smallr.review") / "page"
    for name, (file, kind) in _FILES.items():
        content = (folder / file).read_bytes()

        def answer(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=f"{kind}; charset=utf-8")

        app.add_api_route(f"/{name}", answer, methods=["GET"])


def _add_routes(app: FastAPI, session: Session) -> None:
    @app.get("/api/state")
    async def state() -> dict[str, Any]:
        return session.state()

    @app.post("/api/queues")
    async def make_queue(http: HttpRequest) -> dict[str, Any]:
        fields = await read_fields(http)
        names = Filter.__dataclass_fields__
        if unknown := [name for name in fields if name not in names]:
            raise BadRequest(f"{unknown[0]!r} must be one of: {', '.join(names)}")
        return session.make_queue(Filter(**fields))

    @app.get("/api/queues/{number}")
    async def page(number: int, offset: int = 0, limit: int = 50) -> dict[str, Any]:
        if offset < 0 or limit < 1:
            raise BadRequest("offset must be at least 0, and limit at least 1")
        return _found(lambda: session.page(number, offset, limit))

    @app.get("/api/queues/{number}/{position}")
    async def row(number: int, position: int) -> dict[str, Any]:
        return _found(lambda: session.row(number, max(position, 0)))

    @app.post("/api/decisions")
    async def decide(http: HttpRequest) -> dict[str, Any]:
        fields = await read_fields(http)
        number, position = (_typed(fields, name, int) for name in ("queue", "position"))
        digest, decision, text = (_typed(fields, name, str) for name in ("digest", "decision", "text"))
        return _found(lambda: session.decide(number, max(position, 0), digest, decision, text))

    @app.post("/api/undo")
    async def undo(http: HttpRequest) -> dict[str, Any]:
        await read_fields(http)
        return session.undo()


def _found(ask: Any) -> dict[str, Any]:
    try:
        return ask()
    except (KeyError, IndexError):
        raise BadRequest("there is no such queue or row any more; load the page again", status=404) from None


def _typed(fields: Mapping[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadRequest(f"{name} must be {'a text' if kind is str else 'a whole number'}", param=name)
    return value


def serve(session: Session, port: int, *, opens: bool = False) -> None:
    """Serves until SIGTERM or Ctrl-C, and prints the address.

    Args:
      session: of the reviewer.
      port: 0: any that is free.
      opens: the page in the browser.
    """
    sock, token = bind("127.0.0.1", port), secrets.token_urlsafe(24)
    address = f"http://127.0.0.1:{sock.getsockname()[1]}/{token}/"
    total = len(session.reviewed.rows)
    greeting = f"{total} {session.reviewed.kind.name}, reviewed as {session.decisions.reviewer}: {address}"
    ticket = secrets.token_urlsafe(24) if opens else ""
    if opens:
        sock.listen()  # so that a browser that is faster than the server waits for it
        # What a browser is started with, every user of the machine can read: so not the token.
        webbrowser.open(address.replace(token, ticket))
    Server(make_app(session, token, ticket), greeting).run([sock])
