"""Defines how a worker talks to the benchmark: JSON lines on a private stream. Needs nothing but the standard library.

    worker → {"ready": {...}}                 prepared and compiled
    parent → step                             worker → {"seconds": …, "loss": …}
    parent → end                              worker → {"peak": GiB} and ends

A job is a dict: `model` (a Hugging Face folder), `pairs` (a file of JSON lines with chat messages), `groups` (the
pairs of every step), `dtype`, `reference` (live | cached), `lora` (rank, or 0), `learning_rate`, `checkpointing`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


def private_stdout() -> TextIO:
    """Returns the stream to the parent; whatever else this process prints goes to stderr from now on."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def seconds_alive() -> float:
    """Returns seconds since this process was started, imports included (Linux)."""
    start = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start


def peak_gib() -> float:
    """Returns the most memory that this process ever had resident (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**20


class Worker:
    """Is the worker's end."""

    def __init__(self) -> None:
        self.stream = private_stdout()
        self.job: dict[str, Any] = json.loads(sys.stdin.readline())

    def tell(self, content: dict[str, Any]) -> None:
        """Writes a line for the parent."""
        self.stream.write(json.dumps(content) + "\n")
        self.stream.flush()

    def ready(self, **facts: Any) -> None:
        """Says that the next step can be taken."""
        self.tell({"ready": {"start_up": seconds_alive(), **facts}})

    def orders(self) -> Iterator[int]:
        """Yields the numbers of the steps asked for; afterwards tells the peak of memory."""
        for n, line in enumerate(sys.stdin):
            if line.strip() != "step":
                break
            yield n
        self.tell({"peak": peak_gib()})


def read_pairs(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the pairs of a job."""
    return [json.loads(line) for line in Path(job["pairs"]).read_text().splitlines()]
