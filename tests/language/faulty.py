"""A real HTTP server that answers as OpenAI's do, or misbehaves as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


def reply(text: str, n: int = 1, *, finish: str = "stop", chat: bool = True) -> Body:
    """A good reply with n choices, three tokens read and two written for each."""
    written = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    choices = [{"index": i, "finish_reason": finish, **written} for i in range(n)]
    return {"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 2 * n, "total_tokens": 3 + 2 * n}}


def error(message: str, **fields: Any) -> Body:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": "some_error", "param": None, "code": None, **fields}}


def asked(body: Body) -> str:
    """The prompt, or the last message."""
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]


class FaultyServer:
    """Answers on a free port of 127.0.0.1.

    Attributes:
      url: with /v1.
      bodies: of every completion request that came, in order.
      headers: theirs.
      models: what /v1/models says; a number is a status code that it fails with.
      behave: what to do with the request number i (from 0) and its body, by the handler's `send` and the like.
    """

    def __init__(self, behave: Callable[[Handler, int, Body], None]):
        self.behave = behave
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.models: list[str] | int = ["m"]
        self.lock = threading.Lock()
        server = self

        class Bound(Handler):
            owner = server

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def counts(self) -> dict[str, int]:
        """How often each prompt was asked."""
        prompts = [asked(body) for body in self.bodies]
        return {prompt: prompts.count(prompt) for prompt in prompts}


class Handler(BaseHTTPRequestHandler):
    """One connection; `behave` writes to it by the methods below."""

    owner: FaultyServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The list of models."""
        if isinstance(self.owner.models, int):
            self.send(self.owner.models, error("no list for you"))
        else:
            self.send(200, {"object": "list", "data": [{"id": name} for name in self.owner.models]})

    def do_POST(self) -> None:
        """A completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.owner.lock:
            number = len(self.owner.bodies)
            self.owner.bodies.append(body)
            self.owner.headers.append({name.lower(): value for name, value in self.headers.items()})
        self.owner.behave(self, number, body)

    def send(self, status: int, body: Body | str, kind: str = "application/json", **headers: str) -> None:
        """A whole reply."""
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def good(self, body: Body) -> None:
        """The reply that echoes the prompt."""
        chat = "messages" in body
        self.send(200, reply(f"echo {asked(body)}", body.get("n", 1), chat=chat))

    def drop(self, after: int | None = None) -> None:
        """Closes the connection: at once, or after some bytes of a good reply."""
        self.close_connection = True
        if after is not None:
            data = json.dumps(reply("half")).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:after])

    def trickle(self, seconds: float) -> None:
        """A byte now and then, for so long."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "100000")
        self.end_headers()
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.02)
        except OSError:
            pass  # the client has left, as it should
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def handle(self) -> None:
        """Clients that leave are no error here."""
        with suppress(OSError):
            super().handle()


@contextmanager
def serving(behave: Callable[[Handler, int, Body], None] | None = None) -> Iterator[FaultyServer]:
    """A server in a thread of its own; without `behave` it echoes."""
    server = FaultyServer(behave or (lambda handler, _, body: handler.good(body)))
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
