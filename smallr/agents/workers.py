"""Works on many rows at a time; a finished row is in the journal before it is counted, so that a stop loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from absl import logging

from smallr.agents.agent import AgentClient, UnansweredError
from smallr.agents.circuit_breaker import CircuitBreaker, CircuitOpenError
from smallr.agents.usage import Usage
from smallr.core.errors import UserError
from smallr.core.journal import Journal
from smallr.core.stages import Stopped

FIELDS = ("row", "usage")  # of a journal's entry


class HasId(Protocol):
    """Is a row to be worked on; its id is the key of its journal entry."""

    @property
    def id(self) -> str:
        """Returns what tells the row from all others."""
        ...


Row = TypeVar("Row", bound=HasId)


class RowWorkers:
    """Works through rows.

    Args:
      journal: of finished rows; what is in it is not worked on again.
      roles: of the agents, whose usage is stored with each row.
      client: makes the client of one row, which counts in the given usage.
      breaker: of all clients.
      finished: is told of each new output row, and of its usage, when they are in the journal.
      concurrency: rows under way at once.
    """

    def __init__(
        self,
        journal: Journal,
        roles: Iterable[str],
        client: Callable[[Usage], AgentClient],
        breaker: CircuitBreaker,
        finished: Callable[[Mapping[str, Any]], None],
        concurrency: int,
    ):
        self._journal, self._roles, self._client = journal, tuple(roles), client
        self._breaker, self._finished, self._concurrency = breaker, finished, concurrency

    def run(
        self, rows: Sequence[Row], work: Callable[[Row, AgentClient, Usage], Awaitable[dict[str, Any]]]
    ) -> list[str]:
        """Works on every row that is not finished.

        Args:
          rows: all of them.
          work: makes an output row of a row.

        Returns:
          The errors of rows that are left open: they got no reply, or `work` has failed on them.

        Raises:
          Stopped: a signal came, too many requests in a row got no reply, or nothing can be answered as things stand.
        """
        todo = [row for row in rows if row.id not in self._journal]
        return asyncio.run(self._run(todo, work))

    async def _run(self, rows: Sequence[Row], work: Callable) -> list[str]:
        queue, unanswered = iter(rows), []
        count = min(self._concurrency, len(rows))
        tasks = [asyncio.ensure_future(self._worker(queue, work, unanswered)) for _ in range(count)]
        stopped = ""
        with _interrupts(tasks) as signals:
            try:
                await asyncio.gather(*tasks)
            except CircuitOpenError as error:
                stopped = str(error)
                # Requests under way may still be answered, and are paid for if they are; nobody starts another one.
                await asyncio.gather(*tasks, return_exceptions=True)
            except UserError as error:  # of a model: nothing can be answered as things stand
                stopped = str(error)
            except asyncio.CancelledError:
                stopped = f"interrupted by {signals[0]}" if signals else "interrupted"
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        if stopped:
            raise Stopped(
                f"stopped: {stopped}\n{len(self._journal)} rows are finished and kept in {self._journal.path.parent}; "
                "replies that were paid for are in the cache. The same command goes on from there."
            )
        return unanswered

    async def _worker(self, queue: Iterator[Row], work: Callable, unanswered: list[str]) -> None:
        for row in queue:
            usage = Usage()
            try:
                out = await work(row, self._client(usage), usage)
            except (UserError, CircuitOpenError):
                raise
            except UnansweredError as error:
                unanswered.append(str(error))
                continue
            except Exception as error:  # a fault in one row must not take the others with it
                logging.exception("row %s: %s", row.id, error)
                unanswered.append(f"{type(error).__name__}: {error}")
                self._breaker.failed(unanswered[-1])
                continue
            self._journal.add(row.id, {"row": out, "usage": usage.by_role(self._roles)})
            self._finished(out)


@contextlib.contextmanager
def _interrupts(tasks: Sequence[asyncio.Task]) -> Iterator[list[str]]:
    """Lets SIGINT and SIGTERM cancel the tasks; gives the names of signals that came."""
    loop, came = asyncio.get_running_loop(), []

    def stop(number: signal.Signals) -> None:
        came.append(number.name)
        for task in tasks:
            task.cancel()

    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):  # not in the main thread
            loop.add_signal_handler(number, stop, number)
            handled.append(number)
    try:
        yield came
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
