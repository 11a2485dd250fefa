"""Runs programs that are not trusted in a process tree of their own: limited, killed on time, with nothing of the host.

Isolated (Linux user namespaces, see `jail.py`): no network, a root of its own with the interpreter, its standard library
and the system's shared libraries read-only, no packages, a writable folder in memory that vanishes, no privileges.
Without isolation there are the limits alone; it must be asked for.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smallr.core.errors import UserError
from smallr.evals.isolation import cgroups

_JAIL = Path(__file__).with_name("jail.py")
MiB = 1 << 20
_OWN_MEMORY = 64 * MiB  # of the processes that set the sandbox up


@dataclass(frozen=True)
class Limits:
    """Limits what a program may use.

    Attributes:
      wall_seconds: until the whole tree is killed.
      cpu_seconds: of one process.
      memory_bytes: address space of one process, and where there are cgroups the memory of the whole tree; elsewhere the
        tree may use `processes` times as much.
      processes: processes and threads at once. Not enforced for root without isolation.
      disk_bytes: of its writable folder, and of a file.
      output_bytes: of each of the two output streams; more kills it.
    """

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 1024 * MiB
    processes: int = 8
    disk_bytes: int = 16 * MiB
    output_bytes: int = 1 * MiB


@dataclass(frozen=True)
class Outcome:
    """Says how a program ended.

    Attributes:
      status: "exited" (by itself or by a signal), "timeout", or "output" (too much of it).
      returncode: negative for a signal; None unless it exited.
    """

    status: str
    returncode: int | None
    stdout: bytes
    stderr: bytes


class Process:
    """Holds a started program. `wait` must be called, or `kill`; a context manager does the latter."""

    def __init__(
        self,
        argv: Sequence[str],
        files: Mapping[str, str],
        limits: Limits,
        *,
        isolate: bool = True,
        stdin: bytes = b"",
        descriptors: Sequence[int] = (),
    ):
        """Starts it.

        Args:
          argv: arguments of the Python interpreter, e.g. `["main.py"]`.
          files: name -> text of the files in its folder.
          limits: what it may use.
          isolate: False runs it with this user's rights on the host.
          stdin: what it reads.
          descriptors: open descriptors of this process that it keeps, under the same numbers.
        """
        self.limits, self._isolate = limits, isolate
        self._folder = None if isolate else tempfile.mkdtemp(prefix="smallr-program-")
        self._group = cgroups.create(limits.memory_bytes + _OWN_MEMORY)
        report, report_end = os.pipe()
        self._report = report
        with tempfile.TemporaryFile() as spec_file:
            spec_file.write(json.dumps(self._spec(argv, files, descriptors)).encode())
            spec_file.seek(0)
            command = [sys.executable, "-I", "-S", str(_JAIL), str(spec_file.fileno()), str(report_end)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(spec_file.fileno(), report_end, *descriptors),
                start_new_session=True,
                env={},
            )
        os.close(report_end)
        self._feeder = None
        if stdin:  # through a pipe: a file could be opened again by another program of the same user
            self._feeder = threading.Thread(target=self._feed, args=(stdin,), daemon=True)
            self._feeder.start()
        self.restart_clock()

    def restart_clock(self) -> None:
        """Counts the wall time from now on."""
        self._deadline = time.monotonic() + self.limits.wall_seconds

    def _feed(self, data: bytes) -> None:
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # the program may end without reading
            pipe.write(data)

    def _spec(self, argv: Sequence[str], files: Mapping[str, str], descriptors: Sequence[int]) -> dict:
        limits = self.limits
        return {
            "isolate": self._isolate,
            "parent": os.getpid(),
            "group": None if self._group is None else str(self._group),
            "argv": list(argv),
            "files": dict(files),
            "folder": self._folder,
            "python": os.path.realpath(sys.executable),
            "prefix": os.path.realpath(sys.base_prefix),
            "version": f"python{sys.version_info.major}.{sys.version_info.minor}",
            "disk_bytes": limits.disk_bytes,
            "keep": list(descriptors),
            "limits": {
                "AS": limits.memory_bytes,
                "CPU": limits.cpu_seconds,
                "FSIZE": limits.disk_bytes,
                "NPROC": limits.processes,
                "NOFILE": 64,
                "MSGQUEUE": 0,
                "CORE": 0,
            },
        }

    def wait(self) -> Outcome:
        """Waits for the end, or brings it about at the limits.

        Raises:
          UserError: the sandbox could not be set up.
        """
        try:
            status, streams = self._read()
        finally:
            self.kill()
        report = _read_report(bytes(streams["report"]))
        if "error" in report:
            raise UserError(f"sandbox: it cannot be set up here: {report['error']}")
        return Outcome(status, report.get("returncode"), bytes(streams["stdout"]), bytes(streams["stderr"]))

    def _read(self) -> tuple[str, dict[str, bytearray]]:
        """Reads all streams until the report is there."""
        sources = {
            "stdout": self._process.stdout.fileno(),
            "stderr": self._process.stderr.fileno(),
            "report": self._report,
        }
        streams = {name: bytearray() for name in sources}
        with selectors.DefaultSelector() as selector:
            for name, descriptor in sources.items():
                os.set_blocking(descriptor, False)
                selector.register(descriptor, selectors.EVENT_READ, name)
            while True:
                left = self._deadline - time.monotonic()
                events = selector.select(max(left, 0))
                if not events and left <= 0:
                    return "timeout", streams
                ended = False
                for key, _ in sorted(events, key=lambda event: event[0].data == "report"):
                    data = os.read(key.fd, 1 << 16)
                    streams[key.data] += data
                    if not data:
                        selector.unregister(key.fd)
                        ended |= key.data == "report"
                    elif len(streams[key.data]) > self.limits.output_bytes:
                        del streams[key.data][self.limits.output_bytes :]
                        return "output", streams
                if ended and all(key.data == "report" for key, _ in events):  # nothing more to read
                    return "exited", streams
                if ended:
                    selector.register(self._report, selectors.EVENT_READ, "report")

    def kill(self) -> None:
        """Ends the whole tree and removes what it has written; more calls do nothing."""
        if self._process.returncode is None:
            if not self._isolate:
                self._process.terminate()  # it kills what is below it
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(5)
            if self._process.poll() is None:
                # While the leader is not waited for, its group is ours.
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._feeder is not None:
            self._feeder.join(1)  # its pipe has no reader any more, unless an unsafe program has hidden one
        if self._report >= 0:
            os.close(self._report)
            self._report = -1
        self._process.stdout.close()
        self._process.stderr.close()
        if self._group is not None:
            cgroups.remove(self._group)
            self._group = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Process:
        """Returns the process."""
        return self

    def __exit__(self, *_) -> None:
        """Kills it."""
        self.kill()


def _read_report(data: bytes) -> dict:
    """Returns the launcher's report; empty where it was killed before it wrote one, or wrote something else."""
    try:
        report = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) and isinstance(report.get("returncode"), int | None) else {}


def run(
    argv: Sequence[str],
    files: Mapping[str, str],
    limits: Limits = Limits(),
    *,
    isolate: bool = True,
    stdin: bytes = b"",
) -> Outcome:
    """Runs a program to its end; see `Process`."""
    return Process(argv, files, limits, isolate=isolate, stdin=stdin).wait()


@functools.cache
def why_not_isolated() -> str | None:
    """Returns why programs cannot be isolated on this host; None if they can."""
    if sys.platform != "linux":
        return f"namespaces are Linux's; this is {sys.platform}"
    try:
        outcome = run(["-c", "import os; print(os.listdir('/'))"], {}, Limits(wall_seconds=20))
    except UserError as error:
        return str(error).removeprefix("sandbox: it cannot be set up here: ")
    if outcome.returncode != 0:
        return (
            f"the interpreter does not run inside: {(outcome.stderr.decode(errors='replace') or outcome.status)[-200:]}"
        )
    return None


def require_isolation(unsafe: bool) -> bool:
    """Returns whether code is isolated.

    Args:
      unsafe: the user accepts that it is not.

    Raises:
      UserError: it cannot be, and the user has not accepted it.
    """
    if unsafe:
        return False
    if (reason := why_not_isolated()) is not None:
        raise UserError(
            f"code of a model is not run without isolation, and it cannot be isolated here ({reason}). Allow unprivileged "
            "user namespaces (sysctl user.max_user_namespaces), or run in a container made for it and accept the risk: "
            "--unsafe_code_execution"
        )
    return True
