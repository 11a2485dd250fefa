"""A thread that runs an engine, so that all who ask at the same time share its batch."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import threading
from typing import Any, Protocol

from absl import logging

from smallr.core.errors import UserError
from smallr.sampling.completions import OnDelta
from smallr.sampling.requests import Request, Result

Answer = concurrent.futures.Future  # of a Result


class ContinuousEngine(Protocol):
    """What is used of `smallr.sampling.engine.Engine`."""

    def submit(self, request: Request, on_delta: OnDelta | None = None) -> Any:
        """Queues a request; the `result` of what it returns is None until all samples are finished."""

    def cancel(self, handle: Any) -> None:
        """Gives up a request; its slots are free for others."""

    def step(self) -> None:
        """Admits what has room and decodes every sequence some tokens further."""


class EngineFailure(RuntimeError):
    """The engine failed as a whole, or was closed; nothing more can be asked of it."""


class EngineThread:
    """Steps an engine while there is work. `submit` and `close` may be called from any thread.

    Args:
      engine: used by this thread alone from now on.
    """

    def __init__(self, engine: ContinuousEngine):
        self.failure: Exception | None = None
        self._engine = engine
        self._inbox: collections.deque[tuple[Request, OnDelta | None, Answer]] = collections.deque()
        self._handles: dict[Answer, Any] = {}  # of the engine's thread alone
        self._open: set[Answer] = set()
        self._left: set[Answer] = set()
        self._wake = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Requests that wait or are decoded."""
        return len(self._open)

    def submit(self, request: Request, on_delta: OnDelta | None = None) -> Answer:
        """The future result of a request; to cancel it gives the slots back.

        Args:
          request: what to complete.
          on_delta: called by the engine in its thread; must return at once.

        Raises:
          EngineFailure: the engine has failed or was closed.
        """
        answer: Answer = concurrent.futures.Future()
        with self._wake:
            if self._is_closing or self.failure is not None:
                raise self._refusal()
            self._open.add(answer)
            self._inbox.append((request, on_delta, answer))
            self._wake.notify()
        answer.add_done_callback(self._settled)
        return answer

    def close(self) -> None:
        """Ends the thread; what is under way fails."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        self._thread.join()

    def _settled(self, answer: Answer) -> None:
        with self._wake:
            self._open.discard(answer)
            if answer.cancelled():
                self._left.add(answer)
                self._wake.notify()

    def _run(self) -> None:
        try:
            while self._take():
                self._engine.step()
                self._give()
        except Exception as error:
            logging.exception("the engine has failed")
            self.failure = error
        with self._wake:
            self._is_closing = True
            waiting = list(self._open)
        for answer in waiting:
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                answer.set_exception(self._refusal())

    def _take(self) -> bool:
        """Hands what has come to the engine, once there is work; False when the thread is to end."""
        with self._wake:
            while not (self._is_closing or self._inbox or self._handles):
                self._left.clear()
                self._wake.wait()
            if self._is_closing:
                return False
            new = [entry for entry in self._inbox if entry[2] not in self._left]
            gone = [answer for answer in self._left if answer in self._handles]
            self._inbox.clear()
            self._left.clear()
        for answer in gone:
            self._engine.cancel(self._handles.pop(answer))
        for request, on_delta, answer in new:
            try:
                self._handles[answer] = self._engine.submit(request, on_delta)
            except UserError as error:
                _settle(answer, Result(error=str(error)))
        return True

    def _give(self) -> None:
        for answer, handle in list(self._handles.items()):
            if handle.result is not None:
                del self._handles[answer]
                _settle(answer, handle.result)

    def _refusal(self) -> EngineFailure:
        refusal = EngineFailure(f"the engine has failed: {self.failure}" if self.failure else "the engine was closed")
        refusal.__cause__ = self.failure
        return refusal


def _settle(answer: Answer, result: Result) -> None:
    with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled just now
        answer.set_result(result)
