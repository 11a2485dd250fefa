"""Programs on eight simulated devices: one process runs those of all tests, so that it starts and imports once."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import tempfile
import traceback
from typing import NamedTuple

from tests.runs import ROOT, environment


class Printed(NamedTuple):
    """What a program wrote; libraries in C++ write to stderr."""

    stdout: str
    stderr: str


class EightDevices:
    """A process with eight simulated devices. It starts when the first program is given to it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._stderr = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - close() closes it

    def __call__(self, source: str, *arguments: str, seconds: float = 400) -> Printed:
        """Runs a program as `python -c SOURCE ARGUMENTS` would, but for the time of a start."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.devices"],
                cwd=ROOT,
                env=environment(8),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
            )
        before = self._stderr.seek(0, os.SEEK_END)
        self._process.stdin.write(json.dumps([source, *arguments]) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        self._stderr.seek(before)
        stderr = self._stderr.read().decode(errors="replace")
        if not line:  # it has died or hangs; the next program starts another
            self._process.kill()
            self._process.wait()
            self._process = None
            raise AssertionError(f"no answer from eight devices in {seconds} s\n{stderr}")
        stdout, error = json.loads(line)
        assert error is None, f"{error}\n{stdout}\n{stderr}"
        return Printed(stdout, stderr)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._stderr.close()


def run_programs() -> None:
    """Runs in the process of eight devices: a line in is a program, a line out is what it printed and its error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what does not go through Python's stdout must not come between answers
    for line in sys.stdin:
        source, *arguments = json.loads(line)
        stdout, error = io.StringIO(), None
        sys.argv = ["-c", *arguments]
        try:
            with contextlib.redirect_stdout(stdout):
                exec(compile(source, "<program>", "exec"), {"__name__": "__program__"})
        except Exception:
            error = traceback.format_exc()
        answers.write(json.dumps([stdout.getvalue(), error]) + "\n")
        answers.flush()


if __name__ == "__main__":
    from smallr.core.programs import keep_programs
    from tests.cheaper import skip_waits_for_the_disk
    from tests.compiling import compile_as_tests_do

    keep_programs()
    compile_as_tests_do()
    skip_waits_for_the_disk()
    run_programs()
