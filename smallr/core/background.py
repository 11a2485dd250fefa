"""Runs jobs beside the main thread, one after the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Worker:
    """Runs jobs in their order on a thread of its own, which does not keep the process alive.

    A job handles its own errors.
    """

    def __init__(self, name: str):
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, job: Callable[[], object]) -> None:
        """Adds a job."""
        self._jobs.put(job)

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the jobs that were added before; returns False if they are not done after so many seconds."""
        done = threading.Event()
        self._jobs.put(done.set)
        return done.wait(seconds)

    def _run(self) -> None:
        while True:
            self._jobs.get()()
