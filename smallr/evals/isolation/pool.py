"""Keeps a pool of processes whose time-outs hold whatever the work does: a worker that hangs is killed and replaced."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GiB = 1 << 30
_ROOT = str(Path(__file__).parents[3])
MAX_REPLY = 64 << 20  # bytes of a reply
_STARTING_SECONDS = 120.0  # importing the function's module on a busy machine is not the work's fault


@dataclass(frozen=True)
class Answer:
    """Holds the outcome of one call: `value`, or `problem` in words; `timed_out` is one of these."""

    value: Any = None
    problem: str | None = None
    timed_out: bool = False


class Pool:
    """Calls one function of plain values in several processes.

    A worker is a fresh interpreter that imports the function's module: nothing is forked or pickled. It is started
    when it is first needed.
    """

    def __init__(self, target: str, workers: int = 2, seconds: float = 10.0, memory_bytes: int = 2 * GiB):
        """Remembers what to call.

        Args:
          target: `module:function`; arguments and value must be what JSON holds.
          workers: processes at once.
          seconds: limit of one call, in wall time and in processor time.
          memory_bytes: address space of a worker.
        """
        worker = [sys.executable, "-m", "smallr.evals.isolation.worker"]
        self._command = [*worker, target, str(memory_bytes), str(seconds)]
        self._seconds = seconds
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="pool")

    def map(self, calls: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Calls the function with each of these keyword arguments; answers come in their order."""
        return list(self._threads.map(self._call, calls))

    def _call(self, arguments: Mapping[str, Any]) -> Answer:
        worker = self._idle.get()
        try:
            if worker is None:
                worker = _Worker(self._command)
            answer, healthy = worker.ask(arguments, self._seconds)
        except BaseException:
            healthy = False
            raise
        finally:
            if worker is not None and not healthy:
                worker.kill()
                worker = None
            self._idle.put(worker)
        return answer

    def close(self) -> None:
        """Ends all workers."""
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            if (worker := self._idle.get_nowait()) is not None:
                worker.kill()

    def __enter__(self) -> Pool:
        """Returns the pool."""
        return self

    def __exit__(self, *_) -> None:
        """Closes it."""
        self.close()


class _Worker:
    """Runs one process."""

    def __init__(self, command: list[str]):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([_ROOT, os.environ.get("PYTHONPATH", "")])}
        self._process = subprocess.Popen(
            [*command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that what it starts is killed with it
            env=environment,
        )
        self._fresh = True

    def ask(self, arguments: Mapping[str, Any], seconds: float) -> tuple[Answer, bool]:
        """Returns the answer to one call, and whether the worker can go on."""
        if self._fresh and self._line(_STARTING_SECONDS) != b'"ready"\n':
            return Answer(problem="the worker did not start"), False
        self._fresh = False
        deadline = time.monotonic() + seconds
        try:
            if not self._write(json.dumps(arguments).encode() + b"\n", deadline):
                return Answer(problem="timed out", timed_out=True), False
        except OSError:
            return Answer(problem="the worker ended"), False
        line = self._line(deadline - time.monotonic())
        if line is None:
            return Answer(problem="timed out", timed_out=True), False
        if not line.endswith(b"\n"):
            return Answer(problem="the worker ended (out of memory, or a crash)"), False
        return _read_reply(line)

    def _write(self, data: bytes, deadline: float) -> bool:
        """Sends all of it; False if the worker does not take it in time."""
        descriptor = self._process.stdin.fileno()
        os.set_blocking(descriptor, False)
        view = memoryview(data)
        while view:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([], [descriptor], [], left)[1]:
                return False
            view = view[os.write(descriptor, view) :]
        return True

    def _line(self, seconds: float) -> bytes | None:
        """Returns one line; None if it does not come in time; a part of one if the process ends or does not end the line."""
        deadline, parts = time.monotonic() + seconds, bytearray()
        descriptor = self._process.stdout.fileno()
        while not parts.endswith(b"\n") and len(parts) < MAX_REPLY:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                return None
            data = os.read(descriptor, 1 << 16)
            if not data:
                break
            parts += data
        return bytes(parts)

    def kill(self) -> None:
        """Ends the process and what it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def _read_reply(line: bytes) -> tuple[Answer, bool]:
    """Returns the answer in a line, and whether it is one."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        reply = None
    if isinstance(reply, dict) and reply.keys() == {"value"}:
        return Answer(reply["value"]), True
    if isinstance(reply, dict) and reply.keys() == {"error"} and isinstance(reply["error"], str):
        return Answer(problem=reply["error"]), True
    return Answer(problem="the worker's reply cannot be read"), False
