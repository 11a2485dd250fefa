"""Judges code by running it in the sandbox: against a benchmark's tests, or from standard input to standard output.

The model's code runs in a process that never sees the tests. A second process, which runs the benchmark's code alone,
calls it over a socket, gets values of builtin types, and decides. So leaving early, printing what a test would print, or
changing builtins proves nothing.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path

from smallr.evals import extraction
from smallr.evals.graders.base import Job, Verdict
from smallr.evals.isolation import sandbox
from smallr.evals.isolation.sandbox import Limits, Process

_PROGRAMS = Path(sandbox.__file__).with_name("programs")
_WIRE, _SERVER, _TESTER = ((_PROGRAMS / name).read_text() for name in ("wire.py", "serve_solution.py", "run_tests.py"))


@dataclass(frozen=True)
class Calls:
    """Holds tests that call the solution.

    Attributes:
      setup: the benchmark's own code, run before the tests.
      remote: names in the tests -> names that the solution must define.
      tests: pieces of code; all must run through.
    """

    setup: str
    remote: Mapping[str, str]
    tests: Sequence[str]


@dataclass(frozen=True)
class Streams:
    """Holds tests of a whole program: (standard input, expected standard output) each."""

    cases: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Check:
    """Describes what is run.

    Attributes:
      tests: of the program.
      program: gets the extracted code and gives the whole source.
      names: what the solution must define; they decide which block of an answer is the solution.
    """

    tests: Calls | Streams
    program: Callable[[str], str] = field(default=lambda code: code)
    names: Sequence[str] = ()


class Programs:
    """Grades code as right if it passes all tests of its question."""

    def __init__(self, *, unsafe: bool = False, workers: int = 2, limits: Limits | None = None):
        """Checks that code can be isolated here.

        Args:
          unsafe: run it with limits alone.
          workers: solutions at once.
          limits: of each process; of Streams, for each case.

        Raises:
          UserError: code cannot be isolated here and `unsafe` is not set.
        """
        self._isolate = sandbox.require_isolation(unsafe)
        self._limits = limits or Limits()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="programs")

    def grade(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Returns one verdict for each job; gold is a `Check`."""
        return list(self._threads.map(self._grade, jobs))

    def _grade(self, job: Job) -> Verdict:
        check: Check = job.gold
        code = extraction.code(job.output, check.names)
        if code is None:
            return Verdict(False, None, "no answer")
        source = check.program(code)
        if "\0" in source or not _encodable(source):
            return Verdict(False, code, "not text that Python reads")
        judge = self._streams if isinstance(check.tests, Streams) else self._calls
        return replace(judge(source, check.tests), extracted=code)

    def _calls(self, source: str, tests: Calls) -> Verdict:
        spec = json.dumps({"setup": tests.setup, "remote": dict(tests.remote), "tests": list(tests.tests)})
        ours, theirs = socket.socketpair()
        with ours, theirs:
            tester = Process(
                ["run_tests.py", str(ours.fileno())],
                {"wire.py": _WIRE, "run_tests.py": _TESTER},
                self._limits,
                isolate=self._isolate,
                stdin=spec.encode(),
                descriptors=[ours.fileno()],
            )
            ours.close()
            with tester:
                # The solution is started once the tests are read, and nowhere else: it cannot open what is not there.
                theirs.settimeout(self._limits.wall_seconds)
                if not _is_ready(theirs):
                    return Verdict(False, None, "the tests could not be loaded")
                theirs.settimeout(None)
                solution = Process(
                    ["serve_solution.py", "solution.py", str(theirs.fileno())],
                    {"wire.py": _WIRE, "serve_solution.py": _SERVER, "solution.py": source},
                    self._limits,
                    isolate=self._isolate,
                    descriptors=[theirs.fileno()],
                )
                theirs.close()  # only the programs hold the connection now, so that the end of one is seen by the other
                with solution:
                    tester.restart_clock()
                    outcome = tester.wait()
        if outcome.status != "exited":
            return Verdict(False, None, "timed out" if outcome.status == "timeout" else outcome.status)
        return _verdict(outcome)

    def _streams(self, source: str, tests: Streams) -> Verdict:
        for number, (given, expected) in enumerate(tests.cases, start=1):
            outcome = sandbox.run(
                ["main.py"], {"main.py": source}, self._limits, isolate=self._isolate, stdin=given.encode()
            )
            if outcome.status != "exited":
                return Verdict(False, None, "timed out" if outcome.status == "timeout" else "too much output")
            if outcome.returncode != 0:
                last = outcome.stderr.decode(errors="replace").strip().splitlines()[-1:]
                return Verdict(False, None, f"case {number}: exit code {outcome.returncode} {''.join(last)[:200]}")
            if not same_output(outcome.stdout.decode(errors="replace"), expected):
                return Verdict(False, None, f"case {number}: another output")
        return Verdict(bool(tests.cases), None, "" if tests.cases else "no tests")

    def close(self) -> None:
        """Ends the threads; processes end with their jobs."""
        self._threads.shutdown()


def _is_ready(connection: socket.socket) -> bool:
    """Waits for the tester's first byte."""
    try:
        return connection.recv(1) == b"\n"
    except OSError:
        return False


def _verdict(outcome: sandbox.Outcome) -> Verdict:
    """Returns what the tester has written: passed, failed, or something that is no verdict."""
    try:
        result = json.loads(outcome.stdout)
        passed, failure = result["ok"], result["failure"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return Verdict(False, None, f"the tests ended early: {outcome.stderr.decode(errors='replace')[-200:]}")
    return Verdict(passed is True and failure is None and outcome.returncode == 0, None, str(failure or ""))


def same_output(found: str, expected: str) -> bool:
    """Returns whether outputs are equal line by line, up to white space and the notation of numbers."""
    lines = [[line.split() for line in text.strip().splitlines()] for text in (found, expected)]
    if len(lines[0]) != len(lines[1]):
        return False
    return all(
        a == b or (len(a) == len(b) and all(x == y or _same_number(x, y) for x, y in zip(a, b, strict=True)))
        for a, b in zip(*lines, strict=True)
    )


def _same_number(a: str, b: str) -> bool:
    try:
        x, y = Decimal(a), Decimal(b)
    except InvalidOperation:
        return False
    return x.is_finite() and y.is_finite() and x == y


def _encodable(source: str) -> bool:
    try:
        source.encode()
    except UnicodeEncodeError:
        return False
    return True
