"""Measures where the seconds of a run go."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Clock:
    """Adds up seconds by name; `laps` has them in the order of first use."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Counts the time since the last lap for `name`."""
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

    def total(self) -> float:
        """Returns seconds since the clock was made."""
        return time.perf_counter() - self._start

    def line(self) -> str:
        """Returns a line such as `data 1.2 s, model 3.4 s; 4.6 s in all`."""
        return (
            ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.laps.items())
            + f"; {self.total():.1f} s in all"
        )


class Timed(Iterator[T], Generic[T]):
    """Goes over `items`; `waited` has the seconds that were spent on waiting for them."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self.waited = iter(items), 0.0

    def __next__(self) -> T:
        start = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.waited += time.perf_counter() - start
