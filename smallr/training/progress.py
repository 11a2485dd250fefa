"""Shows the progress of a run: a bar on a terminal, plain lines in a log file. Process 0 alone writes."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


def log(text: str) -> None:
    """Prints to standard output, from process 0 only; a bar on the terminal moves out of the way."""
    if jax.process_index() == 0:
        print(text, flush=True)


def announce(text: str) -> None:
    """Prints to standard error, from process 0 only, what takes the next seconds."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


class Progress:
    """Shows training on standard error: steps, loss, accuracy, real tokens/s and the time that is left.

    On a terminal it is one line that renews itself, elsewhere one line with a time stamp for each update.
    """

    def __init__(self, first: int, total: int) -> None:
        """Starts at `first` finished steps (of an earlier session) of `total`."""
        self._first, self._total = first, total
        self._bar: Bar | None = None
        self._silent = jax.process_index() != 0

    def __enter__(self) -> Progress:
        self._start = time.monotonic()
        if not self._silent and sys.stderr.isatty():
            self._bar = Bar(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=None),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                expand=True,
                refresh_per_second=1,  # a step takes about as long, and a recorded terminal keeps every picture
                # Text for a file must not end on the terminal because the bar is there.
                redirect_stdout=sys.stdout.isatty(),
            )
            self._task = self._bar.add_task("", total=self._total, completed=self._first)
            self._bar.start()
        return self

    def update(self, step: int, **metrics: float) -> None:
        """Shows that `step` steps are finished, and of the metrics `loss`, `accuracy` and `tokens_per_second`."""
        if self._silent:
            return
        text = self._describe(step, metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        width = len(str(self._total))
        print(f"{stamp}  step {step:>{width}}/{self._total}  {text}", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _describe(self, step: int, metrics: dict[str, float]) -> str:
        parts = []
        if "loss" in metrics:
            loss = metrics["loss"]
            parts.append(f"loss {loss:8.4f}" if abs(loss) < 1000 else f"loss {loss:8.2e}")
        if "accuracy" in metrics:
            parts.append(f"accuracy {metrics['accuracy']:6.1%}")
        if "tokens_per_second" in metrics:
            parts.append(f"{metrics['tokens_per_second']:9,.0f} tokens/s")
        parts.append(f"ETA {self._remaining(step):>7}")
        return "  ".join(parts)

    def _remaining(self, step: int) -> str:
        done = step - self._first
        if done <= 0:
            return "?"
        seconds = (time.monotonic() - self._start) / done * (self._total - step)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def headline(metrics: Mapping[str, float]) -> str:
    """Writes the metrics that people look for first, as far as there are any."""
    names = ("loss", "accuracy", "token_accuracy", "margin")
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in names if name in metrics)


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Writes aligned columns as plain text, the same on a terminal and in a file; columns of numbers are right-aligned.

    Args:
      headers: one name a column; when all are empty there is no header line.
      rows: cells, shown with `str`.

    Raises:
      ValueError: a row has not as many cells as there are headers.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"a row of the table has {len(row)} cells, but there are {len(headers)} headers: {row}")
    columns = list(zip(headers, *cells, strict=True))
    widths = [max(cell_len(cell) for cell in column) for column in columns]
    right = [any(column[1:]) and all(_is_number(cell) for cell in column[1:] if cell) for column in columns]

    def line(row: Sequence[str]) -> str:
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        return "  ".join(
            space + cell if numeric else cell + space for cell, space, numeric in zip(row, spaces, right, strict=True)
        ).rstrip()

    head = [line(headers), "  ".join("-" * width for width in widths)] if any(headers) else []
    return "\n".join([*head, *(line(row) for row in cells)])


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().rstrip("%x").replace(",", ""))
    except ValueError:
        return False
    return True
