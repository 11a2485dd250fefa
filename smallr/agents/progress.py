"""Shows the counts of a job while it goes: a live table on a terminal, else a line now and then."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from smallr.agents.agent import Agent
from smallr.agents.usage import Usage

_SECONDS = 30.0  # between lines where there is no terminal
Counts = Callable[[], Sequence[tuple[str, str]]]  # what a method counts: names and texts


class Progress:
    """Shows how far a job is.

    Args:
      total: rows in all.
      agents: for prices.
      usage: of this session's requests; whoever asks counts in it.
      prior: what earlier sessions of the job have used.
      counts: gives the method's own lines of the table.
      title: of the table.
      console: shows it.
    """

    def __init__(
        self,
        total: int,
        agents: Mapping[str, Agent],
        usage: Usage,
        prior: Usage,
        counts: Counts,
        title: str,
        console: Console,
    ):
        self._total, self._agents, self._usage, self._prior = total, agents, usage, prior
        self._counts, self._title, self._console = counts, title, console
        self._done = self._resumed = 0
        self._started = self._printed = time.monotonic()
        self._live = Live(get_renderable=self.table, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Progress:
        """Starts the live table, on a terminal."""
        self._started = self._printed = time.monotonic()
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it; the last table stays."""
        if self._console.is_terminal:
            self._live.stop()
        self._console.print(self.table())

    def advance(self, *, resumed: bool = False) -> None:
        """Counts a finished row; one of an earlier session tells nothing about speed."""
        self._done += 1
        self._resumed += resumed
        if not resumed and not self._console.is_terminal and time.monotonic() - self._printed >= _SECONDS:
            self._printed = time.monotonic()
            self._console.print(self.line(), highlight=False)

    def line(self) -> str:
        """Returns the counts in one line."""
        counts = "; ".join(f"{text} {name}" for name, text in self._counts() if name and text)
        return f"{self._done} of {self._total} rows: {counts}; {self._requests()}; ETA {self._eta()}"

    def table(self) -> Table:
        """Returns the counts as a table."""
        table = Table(title=self._title, title_justify="left", show_header=False)
        resumed = f" ({self._resumed} of an earlier session)" if self._resumed else ""
        table.add_row("rows", f"{self._done} of {self._total}{resumed}, ETA {self._eta()}")
        for name, text in self._counts():
            table.add_row(name, text)
        table.add_row("requests", self._requests())
        return table

    def _requests(self) -> str:
        usage, before = self._usage, self._prior.total("requests")
        text = (
            f"{usage.total('requests')} requests, {usage.total('cached')} from the cache, "
            f"{usage.total('reasks')} asked again; "
            f"{usage.total('prompt_tokens')} + {usage.total('completion_tokens')} tokens"
        )
        if cost := usage.cost(self._agents) + self._prior.cost(self._agents):
            text += f", cost {cost:.4f}"
        return text + (f" (and {before} requests before)" if before else "")

    def _eta(self) -> str:
        fresh = self._done - self._resumed
        if not fresh:
            return "unknown"
        seconds = (time.monotonic() - self._started) / fresh * (self._total - self._done)
        return str(datetime.timedelta(seconds=round(seconds)))
