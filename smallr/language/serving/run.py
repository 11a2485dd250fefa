"""Runs the application until it is told to stop."""

from __future__ import annotations

import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from smallr.core.errors import UserError

GRACE = 30  # seconds that requests under way are given after SIGTERM


def bind(host: str, port: int) -> socket.socket:
    """Opens a socket at the address before a model is loaded, so that it is known to be free; port 0 is any free one.

    Raises:
      UserError: the address is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except (OSError, OverflowError) as error:
        sock.close()
        raise UserError(f"cannot listen at {host}:{port} ({error}): choose others with --host and --port") from error
    return sock


class Server(uvicorn.Server):
    """Says where it is once it can be reached."""

    def __init__(self, app: ASGIApp, greeting: str):
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE, lifespan="off"))
        self._greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._greeting, flush=True)


def run(app: FastAPI, sock: socket.socket, name: str) -> None:
    """Serves until SIGTERM or Ctrl-C; then requests under way get `GRACE` seconds to end, and no more are taken."""
    host, port = sock.getsockname()[:2]
    address = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
    Server(app, f"smallr: serving {name} at {address}").run([sock])


def exit_on_sigterm() -> None:
    """Makes SIGTERM end the process with status 0, now while it loads and later when it has served out."""

    def leave(_: int, __: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
