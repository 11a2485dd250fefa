"""Shapes errors as OpenAI's protocol does."""

from __future__ import annotations

from typing import Any

CLIENT_LEFT = 499  # status as nginx logs it; nobody is there to read it


class BadRequest(Exception):
    """Says that a request is answered by an error in OpenAI's shape.

    Attributes:
      status: HTTP status code.
      param: the field that is to blame.
      code: for programs to read.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message.encode("utf-8", "backslashreplace").decode())
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """Returns the reply."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}
