"""The counts of a run while it goes: a live table on a terminal, else a line now and then."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from smallr.methods.crv.agents import Agent, Tally
from smallr.methods.crv.rows import LABELS

_SECONDS = 30.0  # between lines where there is no terminal


class Board:
    """Counts, and shows them.

    Args:
      rows: to be done in all.
      agents: for prices.
      tally: of this session's requests; whoever asks counts in it.
      prior: what earlier sessions of the run have used.
      console: where to.
    """

    def __init__(self, rows: int, agents: Mapping[str, Agent], tally: Tally, prior: Tally, console: Console):
        self._rows, self._agents, self._tally, self._prior, self._console = rows, agents, tally, prior, console
        self._labels: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._resumed = 0
        self._started = self._said = time.monotonic()
        self._live = Live(get_renderable=self.table, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Board:
        """Starts the live table, on a terminal."""
        self._started = self._said = time.monotonic()
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends it; the last table stays."""
        if self._console.is_terminal:
            self._live.stop()
        self._console.print(self.table())

    def count(self, row: Mapping[str, Any], *, resumed: bool = False) -> None:
        """Counts a finished row; one of an earlier session says nothing about speed."""
        self._labels[row["label"]] += row["label"] != ""
        self._counts["done"] += 1
        self._counts["verified" if not row["reason"] else "failed"] += 1
        self._counts["rewritten"] += row["rewritten"]
        self._counts["retries"] += max(len(row["attempts"]) - 1, 0)
        self._counts["incorrect"] += len(row["incorrect"])
        if row["reason"]:
            self._reasons[row["reason"]] += 1
        self._resumed += resumed
        if not resumed and not self._console.is_terminal and time.monotonic() - self._said >= _SECONDS:
            self._said = time.monotonic()
            self._console.print(self.line(), highlight=False)

    def line(self) -> str:
        """The counts in one line."""
        labels = ", ".join(f"{self._labels[label]} {label}" for label in LABELS)
        counts = self._counts
        return (
            f"{counts['done']} of {self._rows} rows: {labels}; {counts['rewritten']} rewritten, {counts['verified']} verified, "
            f"{counts['failed']} failed, {counts['retries']} retries; {self._used()}; ETA {self._eta()}"
        )

    def table(self) -> Table:
        """The counts as a table."""
        table = Table(title="critique, rethink, verify", title_justify="left", show_header=False)
        counts = self._counts
        resumed = f" ({self._resumed} of an earlier session)" if self._resumed else ""
        table.add_row("rows", f"{counts['done']} of {self._rows}{resumed}, ETA {self._eta()}")
        table.add_row("labels", ", ".join(f"{self._labels[label]} {label}" for label in LABELS))
        table.add_row("rewritten", f"{counts['rewritten']} ({counts['retries']} retries)")
        table.add_row("verified", f"{counts['verified']}")
        table.add_row("failed", f"{counts['failed']}")
        for reason, count in self._reasons.most_common():
            table.add_row("", f"{count} {reason}")
        table.add_row("incorrect", f"{counts['incorrect']} rationales")
        table.add_row("requests", self._used())
        return table

    def _used(self) -> str:
        tally = self._tally
        requests, cached = tally.total("requests"), tally.total("cached")
        before = self._prior.total("requests")
        text = (
            f"{requests} requests, {cached} from the cache, {tally.total('reasks')} asked again; "
            f"{tally.total('prompt_tokens')} + {tally.total('completion_tokens')} tokens"
        )
        if cost := tally.cost(self._agents) + self._prior.cost(self._agents):
            text += f", cost {cost:.4f}"
        return text + (f" (and {before} requests before)" if before else "")

    def _eta(self) -> str:
        fresh = self._counts["done"] - self._resumed
        if not fresh:
            return "unknown"
        seconds = (time.monotonic() - self._started) / fresh * (self._rows - self._counts["done"])
        return str(datetime.timedelta(seconds=round(seconds)))
