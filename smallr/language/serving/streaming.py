"""Turns what an engine reports in its thread into an async iterator of growing completions."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Self

from smallr.language.engine_thread import Answer, EngineThread
from smallr.sampling.completions import Delta
from smallr.sampling.requests import Request, Result


class Ended(NamedTuple):
    """Says that all choices of one request are finished: its number, its first choice and its result."""

    number: int
    first: int
    result: Result


class Streamed:
    """Iterates over completions of requests, whose choices are counted through: n of the first, n of the second, …

    Iterate once, inside `with`; leaving gives up what is not finished.
    """

    def __init__(self, engine: EngineThread, requests: Sequence[Request]):
        self._engine, self._requests = engine, requests
        self._events: asyncio.Queue[tuple[int, int, Delta | Answer]] = asyncio.Queue()
        self._answers: list[Answer] = []

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()

        def put(number: int, first: int, what: Delta | Answer) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped and its loop is closed
                loop.call_soon_threadsafe(self._events.put_nowait, (number, first, what))

        first = 0
        for number, request in enumerate(self._requests):
            to_queue = functools.partial(put, number, first)
            answer = self._engine.submit(request, to_queue)
            self._answers.append(answer)
            answer.add_done_callback(to_queue)
            first += request.params.n
        return self

    def __exit__(self, *_: object) -> None:
        for answer in self._answers:
            answer.cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta] | Ended]:
        """Yields choices with what they have grown by and, after all choices of a request, its end.

        Raises:
          EngineFailure: the engine has failed.
          RequestFailure: one of the requests has.
        """
        left = len(self._answers)
        while left:
            number, first, what = await self._events.get()
            if isinstance(what, Delta):
                yield first + what.sample, what
            else:
                left -= 1
                yield Ended(number, first, what.result())
