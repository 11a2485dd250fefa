"""What a process that is not trusted says to the graders: it never hangs them, never raises, and is never a pass."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time

import pytest

from smallr.evals.graders.programs import _PROGRAMS, _verdict
from smallr.evals.isolation.pool import _read_reply, _Worker
from smallr.evals.isolation.sandbox import Outcome, _read_report

# The solution is loaded, `f` is a handle, its value is 2.
VALID = [b'{"value": null}', b'{"value": {"handle": 0}}', b'{"value": {"int": "0x2"}}']
# The second test passes if any usual error comes out of the call.
VALUE, ERROR = "assert f(1) == 2", "try:\n    f(1)\nexcept Exception:\n    pass\nelse:\n    assert False, 'no error'"


def judged(data: bytes, test: str = VALUE, close: bool = True) -> dict:
    """The tester's verdict on a solution that sends this, whatever it is asked."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        tester = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_PROGRAMS / "run_tests.py"), str(ours.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[ours.fileno()],
        )
        ours.close()
        tester.stdin.write(json.dumps({"setup": "", "remote": {"f": "f"}, "tests": [test]}).encode())
        tester.stdin.close()
        assert theirs.recv(1) == b"\n"
        try:
            theirs.sendall(data)
            if close:
                theirs.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has seen enough
        with tester.stdout:
            output = tester.stdout.read()
        assert tester.wait(30) == 0
    return json.loads(output)


def dialogue(*lines: bytes) -> bytes:
    return b"\n".join(lines) + b"\n"


@pytest.mark.process
def test_the_valid_dialogue_passes():
    assert judged(dialogue(*VALID)) == {"ok": True, "passed": 1, "total": 1, "failure": None}
    error = b'{"error": "KeyError", "message": "x"}'
    assert judged(dialogue(*VALID[:2], error), ERROR)["ok"] is True
    assert judged(dialogue(*VALID[:2], error))["ok"] is False


BROKEN = [
    b"", b"[]", b"3", b"null", b'"text"', b"{}", b'{"value": 2}', b'{"value": [2]}', b'{"value": {"int": 2}}',
    b'{"value": {"int": "x"}}',
    b'{"value": {"int": ["0x2"]}}', b'{"value": {}}', b'{"value": {"int": "0x2", "float": "0x1p0"}}',
    b'{"value": {"none": 1}}',
    b'{"value": {"type": "print"}}', b'{"value": {"type": "nothing"}}', b'{"value": {"type": []}}',
    b'{"value": {"float": "x"}}',
    b'{"value": {"complex": ["0x1p0"]}}', b'{"value": {"bytes": "zz"}}', b'{"value": {"range": ["0x1"]}}',
    b'{"value": {"dict": [[1]]}}',
    b'{"value": {"dict": {"a": 1}}}', b'{"value": {"set": [{"list": []}]}}', b'{"value": {"list": "abc"}}',
    b'{"value": {"list": {"a": 1}}}',
    b'{"value": {"handle": "0"}}', b'{"value": {"handle": [0]}}', b'{"value": {"iterator": null}}',
    b'{"value": {"handle": true}}',
    b'{"value": NaN}', b'{"value": Infinity}', b'{"error": "KeyError"}', b'{"message": "x"}',
    b'{"value": null, "error": "E"}',
    b'{"value": {"int": "0x2"}',
    b'{"value": {"int": "0x2"}}}', b"\xff\xfe", b'{"value": "\xff"}', b"\x00" * 50, b"{" * 1000,
    b'{"value": ' + b'{"list": [' * 50_000 + b"]}" * 50_000 + b"}", b"[" * 200_000,
]  # fmt: skip


@pytest.mark.process
@pytest.mark.parametrize("test", [VALUE, ERROR], ids=["value", "error"])
def test_broken_messages_never_pass_and_cannot_be_caught(test):
    passed = [line[:60] for line in BROKEN if judged(dialogue(*VALID[:2], line), test)["ok"] is not False]
    assert passed == []


@pytest.mark.process
def test_errors_that_would_end_a_loop_of_the_tests_silently_are_failures():
    test = "assert list(map(f, [1, 2])) == []"
    for name in (
        "StopIteration",
        "StopAsyncIteration",
        "GeneratorExit",
        "SystemExit",
        "KeyboardInterrupt",
        "ExceptionGroup",
    ):
        error = json.dumps({"error": name, "message": "x"}).encode()
        assert judged(dialogue(*VALID[:2], error), test)["ok"] is False, name


@pytest.mark.process
def test_random_and_cut_messages_never_pass():
    random_bytes = random.Random(0)
    whole = dialogue(*VALID)
    cases = [random_bytes.randbytes(random_bytes.randrange(200)) for _ in range(15)]
    cases += [whole[:end] for end in range(0, len(whole) - 1, 5)]
    cases += [dialogue(*VALID[:2]) + random_bytes.randbytes(100) + b"\n" for _ in range(15)]
    assert [case for case in cases if judged(case)["ok"] is not False] == []


@pytest.mark.process
def test_a_message_without_an_end_is_refused():
    start = time.monotonic()
    endless = dialogue(*VALID[:2]) + b'{"value": "' + b"x" * (66 << 20)
    verdict = judged(endless, close=False)
    assert (verdict["ok"], "too long" in verdict["failure"]) == (False, True)
    assert time.monotonic() - start < 30


JUNK = [
    b"",
    b"null",
    b"[]",
    b"3",
    b'"ok"',
    b"{}",
    b"{",
    b"\xff",
    b'{"ok": 1}',
    b'{"ok": true}',
    b'{"failure": null}',
    b"[" * 100_000,
]


def test_what_the_tester_writes_is_checked():
    for stdout in [
        *JUNK,
        b'{"ok": 1, "failure": null}',
        b'{"ok": "true", "failure": null}',
        b'{"ok": true, "failure": "x"}',
    ]:
        assert _verdict(Outcome("exited", 0, stdout, b"")).correct is False, stdout[:30]
    good = b'{"ok": true, "failure": null}'
    assert [_verdict(Outcome("exited", code, good, b"")).correct for code in (0, 1, -9, None)] == [
        True,
        False,
        False,
        False,
    ]


def test_reports_and_replies_that_make_no_sense_are_none():
    for data in [*JUNK, b'{"returncode": "0"}', b'{"returncode": [0]}', b'{"returncode": 1.5}']:
        assert _read_report(data).get("returncode") is None
    for data in [*JUNK, b'{"value": 1, "error": "x"}', b'{"error": 3}', b'{"other": 1}']:
        answer, healthy = _read_reply(data)
        assert (answer.value, healthy) == (None, False)
        assert answer.problem


def worker(program: str) -> _Worker:
    return _Worker([sys.executable, "-c", f"import sys, time\nprint('\"ready\"', flush=True)\n{program}"])


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("time.sleep(60)", "timed out"),  # it does not read: the pipe is full
        ("sys.stdin.readline()\nsys.stdout.write('x' * 100)\nsys.stdout.flush()\ntime.sleep(60)", "timed out"),
        ("sys.stdin.readline()\nprint('nonsense', flush=True)\ntime.sleep(60)", "the worker's reply cannot be read"),
        ("sys.exit()", "the worker ended"),
    ],
)
def test_workers_that_break_their_protocol_are_dropped(program, problem):
    process = worker(program)
    try:
        answer, healthy = process.ask({"text": "x" * (1 << 20)}, 0.5)
    finally:
        process.kill()
    assert not healthy
    assert answer.problem.startswith(problem)
