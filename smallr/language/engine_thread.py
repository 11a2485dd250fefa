"""Runs an engine in a thread, so that all who ask at the same time share its batch."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from absl import logging

from smallr.core.errors import UserError
from smallr.sampling.completions import OnDelta
from smallr.sampling.requests import Request, Result

Answer = concurrent.futures.Future  # of a Result

ENCODERS = 2  # threads that tokenise, so that a long prompt holds up neither the engine nor every other prompt
MAX_RESTARTS = 3  # without one good step between them; then the engine has failed for good


class ContinuousEngine(Protocol):
    """Is the part of `smallr.sampling.engine.Engine` that is used here, and its `codec` in the server."""

    codec: Any

    def encode(self, request: Request) -> Any:
        """Checks a request and encodes its prompt, in any thread; UserError if it cannot be served."""

    def submit(self, request: Request, on_delta: OnDelta | None = None, *, encoded: Any = None) -> Any:
        """Queues a request. The handle's `result` is None until it has ended, and `exception` says if it broke.

        When it was submitted, got a slot and had its first token is in `submitted`, `started` and `first_token`.
        """

    def cancel(self, handle: Any) -> None:
        """Gives up a request; its slots are free for others."""

    def step(self) -> Any:
        """Admits what has room and decodes every sequence some tokens further."""

    def restart(self, error: Exception) -> None:
        """Starts over after `step` has raised; the requests that had begun fail."""


class EngineFailure(RuntimeError):
    """Says that the engine failed as a whole, or was closed; nothing more can be asked of it."""


class RequestFailure(RuntimeError):
    """Says that one request broke, or was under way when the engine had to be restarted; others are served."""


class _Entry(NamedTuple):
    request: Request
    on_delta: OnDelta | None
    answer: Answer
    encoded: Any


class EngineThread:
    """Steps an engine while there is work. `submit` and `close` may be called from any thread.

    An exception of one request ends that request. An exception of a step ends the requests that had begun; the engine
    is restarted and the rest is served.

    Args:
      engine: used by this thread alone from now on, but for what any thread may call (`encode`, `codec`).
      on_end: told of each request that has ended, in this thread, by its handle.

    Attributes:
      failure: why the engine has failed for good, if it has.
      restarts: number of times that the engine was restarted.
    """

    def __init__(self, engine: ContinuousEngine, on_end: Callable[[Any], None] | None = None):
        self.failure: Exception | None = None
        self.restarts = 0
        self.engine = engine
        self._on_end = on_end
        self._failed_steps = 0  # one after the other
        self._inbox: collections.deque[_Entry] = collections.deque()
        self._handles: dict[Answer, Any] = {}  # of the engine's thread alone
        self._open: set[Answer] = set()
        self._left: set[Answer] = set()
        self._wake = threading.Condition()
        self._is_closing = False
        self._encoders = concurrent.futures.ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Requests that wait or are decoded."""
        return len(self._open)

    @property
    def running(self) -> int:
        """Requests that have a decode slot."""
        return sum(handle.started is not None for handle in list(self._handles.values()))

    @property
    def is_alive(self) -> bool:
        """Returns whether the engine still serves."""
        return self.failure is None and self._thread.is_alive() and not self._is_closing

    def submit(self, request: Request, on_delta: OnDelta | None = None) -> Answer:
        """Returns the future result of a request; to cancel it gives the slots back.

        Args:
          request: what to complete.
          on_delta: called by the engine in its thread; must return at once.

        Raises:
          EngineFailure: the engine has failed or was closed.
        """
        answer: Answer = concurrent.futures.Future()
        with self._wake:
            if self._is_closing:
                raise self._refusal()
            self._open.add(answer)
            self._encoders.submit(self._encode, request, on_delta, answer)
        answer.add_done_callback(self._settled)
        return answer

    def close(self) -> None:
        """Ends the thread; what is under way fails."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    def _encode(self, request: Request, on_delta: OnDelta | None, answer: Answer) -> None:
        """Tokenises a prompt in a thread of its own and hands it to the engine's."""
        if answer.done():
            return
        try:
            encoded = self.engine.encode(request)
        except UserError as error:
            _settle(answer, Result(error=str(error)))
        except Exception as error:
            _break(answer, error)
        else:
            with self._wake:
                self._inbox.append(_Entry(request, on_delta, answer, encoded))
                self._wake.notify()

    def _settled(self, answer: Answer) -> None:
        with self._wake:
            self._open.discard(answer)
            if answer.cancelled():
                self._left.add(answer)
                self._wake.notify()

    def _run(self) -> None:
        try:
            while self._take():
                self._step()
                self._give()
        except Exception as error:
            logging.exception("the engine has failed")
            self.failure = error
        with self._wake:
            self._is_closing = True
            waiting = list(self._open)
        self._encoders.shutdown(wait=False, cancel_futures=True)
        for answer in waiting:
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                answer.set_exception(self._refusal())

    def _step(self) -> None:
        try:
            self.engine.step()
            self._failed_steps = 0
        except Exception as error:
            self._failed_steps += 1
            if self._failed_steps > MAX_RESTARTS:
                raise
            logging.exception("the engine is restarted")
            self.engine.restart(error)
            self.restarts += 1

    def _take(self) -> bool:
        """Hands what has come to the engine, once there is work; False when the thread is to end."""
        with self._wake:
            while not (self._is_closing or self._inbox or self._handles):
                self._left.clear()
                self._wake.wait()
            if self._is_closing:
                return False
            new = [entry for entry in self._inbox if not entry.answer.done()]
            gone = [answer for answer in self._left if answer in self._handles]
            self._inbox.clear()
            self._left.clear()
        for answer in gone:
            handle = self._handles.pop(answer)
            self.engine.cancel(handle)
            self._ended(handle)
        for entry in new:
            try:
                handle = self.engine.submit(entry.request, entry.on_delta, encoded=entry.encoded)
            except Exception as error:  # of this request alone
                _break(entry.answer, error)
            else:
                self._handles[entry.answer] = handle
        return True

    def _give(self) -> None:
        for answer, handle in list(self._handles.items()):
            if handle.result is not None:
                del self._handles[answer]
                self._ended(handle)
                if handle.exception is None:
                    _settle(answer, handle.result)
                else:
                    _break(answer, handle.exception)

    def _ended(self, handle: Any) -> None:
        if self._on_end is not None:
            self._on_end(handle)

    def _refusal(self) -> EngineFailure:
        refusal = EngineFailure(f"the engine has failed: {self.failure}" if self.failure else "the engine was closed")
        refusal.__cause__ = self.failure
        return refusal


def _settle(answer: Answer, result: Result) -> None:
    with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled just now
        answer.set_result(result)


def _break(answer: Answer, error: Exception) -> None:
    failure = RequestFailure(f"this request failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    logging.error("a request failed", exc_info=error)
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        answer.set_exception(failure)
