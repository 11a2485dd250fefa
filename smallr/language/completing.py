"""Holds the base of all implementations of `LanguageModel`: a thread with an event loop, the cache, the totals."""

from __future__ import annotations

import abc
import asyncio
import concurrent.futures
import dataclasses
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, Self

from absl import logging

from smallr.core.errors import UserError
from smallr.language.base import Progress, Totals
from smallr.language.cache import ResultCache, request_key
from smallr.sampling.requests import Request, Result


class CompletingModel(abc.ABC):
    """Is a `LanguageModel` whose subclass answers one request at a time.

    All work runs on one event loop in a thread of the model's own. So connections and the bound on concurrency are
    shared by all callers, whichever thread or loop they call from.

    Args:
      name: what results are reported under.
      identity: what cached results are filed under; None for that name.
      cache: where results are looked up and stored; None for neither. With a cache equal requests are one request,
        also those that are under way.
    """

    hopeless: tuple[type[Exception], ...] = (UserError,)  # errors after which nothing can be answered

    def __init__(self, name: str, *, identity: str | None = None, cache: ResultCache | None = None):
        self.name = name
        self._identity = identity or name
        self._cache = cache
        self._totals = Totals()
        self._under_way: dict[str, asyncio.Future[Result]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"model {name}", daemon=True)
        self._thread.start()

    @property
    def totals(self) -> Totals:
        """Returns what was done and used since the model was opened."""
        return self._totals

    async def complete(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[Result]:
        """Implements `LanguageModel.complete`."""
        return await asyncio.wrap_future(self._run(self._complete(requests, progress)))

    def complete_sync(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[Result]:
        """Implements `LanguageModel.complete_sync`."""
        return self._wait(self._complete(requests, progress))

    def close(self) -> None:
        """Ends the thread; requests under way are given up. The model cannot be used again."""
        if self._loop.is_closed():
            return
        self._wait(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self._cache is not None:
            self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abc.abstractmethod
    async def _answer(self, request: Request, sample: int = 0) -> Result:
        """Answers one request, on the model's loop; what went wrong with it alone is in `error`.

        Args:
          request: what to complete.
          sample: number of the first sample, where the samples of one request are asked for one by one.

        Raises:
          UserError: nothing can be answered as things stand.
        """

    @abc.abstractmethod
    async def _release(self) -> None:
        """Frees what a subclass holds, on the model's loop."""

    async def _cached(self, request: Request, sample: int = 0) -> Result:
        """Takes the answer from the cache, or from whoever is asking the same just now, or asks for it."""
        if self._cache is None:
            return await self._answer(request, sample)
        key = request_key(self._identity, request, sample)
        while (other := self._under_way.get(key)) is not None:
            await asyncio.wait([other])
            if not other.cancelled():
                return dataclasses.replace(other.result(), cached=True)
        if (found := self._cache.get(key)) is not None:
            return found
        mine = self._under_way[key] = self._loop.create_future()
        try:
            result = await self._answer(request, sample)
            if result.error is None:
                self._cache.put(key, self._identity, result)
            mine.set_result(result)
            return result
        finally:
            mine.cancel()  # if it has no result: whoever waits asks for itself
            del self._under_way[key]

    async def _complete(self, requests: Sequence[Request], progress: Progress | None) -> list[Result]:
        async def one(index: int, request: Request) -> Result:
            try:
                result = await self._cached(request)
            except self.hopeless:
                raise
            except Exception as error:  # whatever it is, it is of this request
                logging.exception("a request to %s failed", self.name)
                result = Result(error=f"{type(error).__name__}: {error}")
            self._totals = self._totals.adding(result)
            if progress is not None:
                progress(index, result)
            return result

        tasks = [asyncio.ensure_future(one(index, request)) for index, request in enumerate(requests)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _shut(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._release()

    def _run(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError(f"model {self.name} was closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a model cannot be waited for inside its own progress callback")
        future = self._run(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # e.g. on Ctrl-C nothing more is asked
            raise
