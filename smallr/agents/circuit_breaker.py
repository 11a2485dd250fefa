"""Stops a job when requests no longer get through."""

from __future__ import annotations


class CircuitOpenError(Exception):
    """Says that so many requests in a row got no reply that no more are sent."""


class CircuitBreaker:
    """Opens after `max_errors` requests in a row without a reply, and then stays open."""

    def __init__(self, max_errors: int):
        self._max_errors, self._errors, self._reason = max_errors, 0, ""

    def check(self) -> None:
        """Refuses a request if the circuit is open; it is called before each.

        Raises:
          CircuitOpenError: no more requests are to be sent.
        """
        if self._reason:
            raise CircuitOpenError(self._reason)

    def succeeded(self) -> None:
        """Notes that a reply came."""
        self._errors = 0

    def failed(self, error: str) -> None:
        """Notes that a request got no reply.

        Raises:
          CircuitOpenError: it was one too many.
        """
        self._errors += 1
        if self._errors >= self._max_errors:
            self._reason = self._reason or f"{self._errors} requests in a row got no reply; the last one: {error}"
            self.check()
