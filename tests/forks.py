"""Processes that begin with everything imported: forks of one that has imported it once, before JAX has any device."""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from tests.cheaper import skip_waits_for_the_disk
from tests.runs import ROOT, environment

IMPORTED = ("smallr.training.trainer", "smallr.doctor.checkup", "smallr.evals.in_training", "tests.tiny")


class Fork:
    """A process that was asked for, like `subprocess.Popen`; what it prints, on both outputs, goes to a file."""

    def __init__(self, forks: Forks, pid: int, printed: Path):
        self.pid, self.returncode, self._forks, self._printed = pid, None, forks, printed

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._forks.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float = 400) -> int:
        """The exit code, once it has ended; it is killed after so many seconds."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(self.pid), timeout, self.printed())
            time.sleep(0.005)
        return self.returncode

    def wait_for(self, text: str, seconds: float = 120) -> str:
        """Waits until it has printed this; all that it has printed by then."""
        end = time.monotonic() + seconds
        while text not in (printed := self.printed()):
            assert self.poll() is None, printed
            assert time.monotonic() < end, printed
            time.sleep(0.002)
        return printed

    def send_signal(self, number: int) -> None:
        """Sends a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def printed(self) -> str:
        """What it has printed so far."""
        return self._printed.read_text(errors="replace")


class Forks:
    """Starts processes of a Python that has imported `IMPORTED`; it begins with the first of them."""

    def __init__(self) -> None:
        self._server: subprocess.Popen | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0

    def start(self, arguments: Sequence[str], env: dict[str, str] | None = None) -> Fork:
        """Starts `python ARGUMENTS`: `-c SOURCE …`, `-m MODULE …` or `FILE …`."""
        self._count += 1
        printed = Path(self._folder.name) / str(self._count)
        printed.touch()
        request = {"arguments": list(map(str, arguments)), "env": env or environment(), "printed": str(printed)}
        return Fork(self, self.ask(request), printed)

    def run(self, processes: Sequence[Sequence[str]], envs: Sequence[dict[str, str]]) -> list[str]:
        """Runs processes side by side to their end, which must be a good one; what each has printed."""
        forks = [self.start(*each) for each in zip(processes, envs, strict=True)]
        try:
            codes = [fork.wait() for fork in forks]
        finally:
            for fork in forks:
                fork.send_signal(signal.SIGKILL)
        outputs = [fork.printed() for fork in forks]
        assert codes == [0] * len(forks), "\n".join(outputs)
        return outputs

    def ask(self, request: dict) -> int | None:
        """The server's answer."""
        if self._server is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            command = [sys.executable, "-m", "tests.forks"]
            self._server = subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes)
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the process that forks has died; it has said why on stderr"
        return json.loads(answer)

    def close(self) -> None:
        """Ends the server."""
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait()
            self._server.stdout.close()
        self._folder.cleanup()


def _run(arguments: list[str]) -> None:
    """Runs a program as `python ARGUMENTS` does."""
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<program>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def _begin(request: dict) -> None:
    """Becomes the process that was asked for; it does not return."""
    out = os.open(request["printed"], os.O_WRONLY | os.O_APPEND)
    for stream, mine in enumerate((os.open(os.devnull, os.O_RDONLY), out, out)):
        os.dup2(mine, stream)
    os.environ.clear()
    os.environ.update(request["env"])
    code = 0
    try:
        _run(request["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        atexit._run_exitfuncs()  # of jax.distributed, which waits for the others
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Forks or tells of a fork, for a line each."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in IMPORTED:
        importlib.import_module(module)
    skip_waits_for_the_disk()
    codes: dict[int, int | None] = {}  # of all forks
    for line in iter(requests.readline, ""):
        request = json.loads(line)
        if "poll" in request:
            pid = request["poll"]
            if codes[pid] is None and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(ended[1])
            answer = codes[pid]
        else:
            answer = os.fork() or _begin(request)
            codes[answer] = None
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for pid in (pid for pid, code in codes.items() if code is None):  # of a test that has failed
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    serve()
