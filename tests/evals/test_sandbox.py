"""What a program in the sandbox can not do; and what is left of it afterwards."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smallr.core.errors import UserError
from smallr.evals.isolation import sandbox
from smallr.evals.isolation.sandbox import Limits, Process, run

REASON = sandbox.why_not_isolated()
isolated = pytest.mark.skipif(REASON is not None, reason=f"no isolation on this host: {REASON}")
BOTH = [pytest.param(True, marks=isolated, id="isolated"), pytest.param(False, id="limits alone")]
QUICK = Limits(wall_seconds=10, cpu_seconds=5, memory_bytes=256 << 20, processes=4)


def python(code: str, limits: Limits = QUICK, **options):
    return run(["-c", code], {}, limits, **options)


def processes_with(mark: str) -> list[int]:
    """Ids of processes whose command line contains a text."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark in (folder / "cmdline").read_text() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:
            pass
    return found


def wait_until_gone(mark: str) -> list[int]:
    for _ in range(50):
        if not (left := processes_with(mark)):
            return []
        time.sleep(0.1)
    return left


@pytest.mark.parametrize("isolate", BOTH)
def test_a_program_reads_its_input_and_files_and_its_exit_code_is_known(isolate):
    code = "import sys; print(open('a.txt').read() + sys.stdin.read()); print('bad', file=sys.stderr); sys.exit(3)"
    outcome = run(["-c", code], {"a.txt": "naïve "}, QUICK, isolate=isolate, stdin=b"input")
    assert (outcome.status, outcome.returncode) == ("exited", 3)
    assert (outcome.stdout.decode(), outcome.stderr) == ("naïve input\n", b"bad\n")


@pytest.mark.parametrize("isolate", BOTH)
@pytest.mark.parametrize("loop", ["while True: pass", "import time; time.sleep(60)"])
def test_a_loop_is_killed_on_time_with_all_that_it_started(isolate, loop):
    mark = f"mark-{os.getpid()}-{isolate}"
    child = f"import os, sys\nif os.fork() == 0:\n    os.setsid()\n    import time; time.sleep(60)\n{loop} # {mark}"
    start = time.monotonic()
    outcome = python(child, Limits(wall_seconds=1.0, processes=4), isolate=isolate)
    assert outcome.status == "timeout"
    assert outcome.returncode is None
    assert time.monotonic() - start < 20
    assert wait_until_gone(mark) == []


@pytest.mark.parametrize("isolate", BOTH)
def test_what_a_program_leaves_running_ends_with_it(isolate):
    mark = f"left-{os.getpid()}-{isolate}"
    code = f"import os\nif os.fork() == 0:\n    os.setsid()\n    import time; time.sleep(60)\nprint('done') # {mark}"
    outcome = python(code, isolate=isolate)
    assert (outcome.status, outcome.returncode, outcome.stdout) == ("exited", 0, b"done\n")
    assert wait_until_gone(mark) == []


@pytest.mark.parametrize("isolate", BOTH)
def test_memory_cpu_files_and_output_are_limited(isolate):
    def last(code: str, limits: Limits = QUICK) -> bytes:
        return python(code, limits, isolate=isolate).stderr.strip().splitlines()[-1:][0]

    assert last("x = bytearray(10**9)") == b"MemoryError"
    cpu = python("while True: pass", Limits(wall_seconds=20, cpu_seconds=1), isolate=isolate)
    assert cpu.returncode == -24  # SIGXCPU
    big = "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); open('x', 'wb').write(bytes(1 << 22))"
    assert b"File too large" in last(big, Limits(disk_bytes=1 << 20))
    loud = python("while True: print('x' * 10000)", isolate=isolate)
    assert (loud.status, len(loud.stdout)) == ("output", QUICK.output_bytes)


@isolated
def test_many_files_together_are_limited():
    code = "for i in range(64): open(f'{i}', 'wb').write(bytes(1 << 20))"
    outcome = python(code, Limits(disk_bytes=4 << 20))
    assert b"No space left on device" in outcome.stderr


@isolated
def test_a_fork_bomb_runs_into_the_limit():
    code = """
import os, time
count = 0
for _ in range(40):
    try:
        if os.fork() == 0:
            time.sleep(30)
    except BlockingIOError:
        break
    count += 1
print(count)
"""
    outcome = python(code, Limits(wall_seconds=10, processes=6))
    assert outcome.status == "exited"
    assert outcome.stdout == b"5\n"  # and itself
    unbounded = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    assert python(unbounded, Limits(wall_seconds=1, processes=6, cpu_seconds=2)).status == "timeout"


@isolated
def test_nothing_of_the_host_can_be_read(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("expected output")
    names = [str(secret), "/etc/passwd", "/proc/self/status", str(Path(sandbox.__file__)), str(Path.home()), "/sys"]
    code = f"""
import os
for name in {names!r}:
    try:
        print(name, os.listdir(name) if os.path.isdir(name) else open(name).read())
    except OSError:
        pass
print(sorted(os.listdir('/')), sorted(os.environ))
"""
    outcome = python(code)
    shown = outcome.stdout.decode()
    for text in ("expected output", "root:", "Limits", "VmPeak"):
        assert text not in shown
    assert outcome.returncode == 0
    inside = set(eval(shown.strip().splitlines()[-1].split("] ")[0] + "]"))
    assert inside <= {"dev", "lib", "lib32", "lib64", "tmp", "usr", "work", *Path(os.path.realpath("/")).parts} | {
        Path(os.path.realpath(os.sys.base_prefix)).parts[1]
    }
    assert "'HOME', 'LANG'" in shown.splitlines()[-1]


@isolated
def test_no_packages_of_the_host_are_there():
    assert b"ModuleNotFoundError: No module named 'numpy'" in python("import numpy").stderr


@isolated
def test_nothing_can_be_written_outside_and_nothing_is_left(tmp_path):
    before = set(Path("/tmp").iterdir())
    target = tmp_path / "written"
    code = f"""
import os
open('mine', 'w').write('x'); open('/tmp/also-mine', 'w').write('x')
for name in ({str(target)!r}, '/usr/lib/x', '/x', '/dev/x', os.__file__):
    try:
        open(name, 'a').write('x')
        print('wrote', name)
    except OSError as error:
        print(error.strerror)
"""
    outcome = python(code)
    assert outcome.returncode == 0
    assert b"wrote" not in outcome.stdout
    assert not target.exists()
    new = set(Path("/tmp").iterdir()) - before
    assert not any("mine" in path.name or "smallr-program" in path.name for path in new)


def test_a_folder_without_isolation_is_removed():
    outcome = python("import os; open('x', 'w'); print(os.getcwd())", isolate=False)
    assert not Path(outcome.stdout.decode().strip()).exists()


@isolated
def test_there_is_no_network_not_even_the_hosts_own():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        outcome = python(code)
        assert outcome.returncode == 1
        assert b"Network is unreachable" in outcome.stderr or b"Cannot assign" in outcome.stderr


@isolated
def test_no_privileges_and_no_way_to_other_processes():
    code = """
import ctypes, os, signal
print(os.getuid(), os.getpid() < 10)
for what in (lambda: os.kill(1, signal.SIGKILL), lambda: os.setuid(0), lambda: os.chroot('/work')):
    try:
        what()
        print('done')
    except OSError as error:
        print(error.strerror)
libc = ctypes.CDLL(None, use_errno=True)
print(libc.mount(b'none', b'/work', b'tmpfs', 0, None), libc.ptrace(16, 1, 0, 0))
"""
    lines = python(code).stdout.decode().splitlines()
    assert lines[0] == "1000 True"
    # As the same user a signal to init is allowed, and ignored; as another it is refused.
    assert lines[1] in ("done", "Operation not permitted")
    assert lines[2:] == ["Operation not permitted"] * 2 + ["-1 -1"]


@isolated
def test_the_report_cannot_be_forged():
    code = """
import os
for fd in range(3, 64):
    try:
        os.write(fd, b'{"returncode": 0}')
    except OSError:
        pass
os._exit(9)
"""
    assert python(code).returncode == 9


def test_killing_the_caller_kills_the_program():
    """It is a process of its own, which ends by SIGKILL and can do nothing more."""
    mark = f"orphan-{os.getpid()}"
    code = f"""
import time
from smallr.evals.isolation.sandbox import Limits, Process
process = Process(["-c", "import time; time.sleep(60) # {mark}"], {{}}, Limits(), isolate={REASON is None})
print("started", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as caller:
        assert caller.stdout.readline() == b"started\n"
        for _ in range(100):
            if len(processes_with(mark)) > 1:  # the caller itself, and the program
                break
            time.sleep(0.1)
        else:
            pytest.fail("the program was not seen")
        caller.kill()
    assert wait_until_gone(mark) == []


def test_without_isolation_code_is_refused_unless_the_user_insists(monkeypatch):
    monkeypatch.setattr(sandbox, "why_not_isolated", lambda: "unshare: Operation not permitted")
    with pytest.raises(UserError, match=r"unshare: Operation not permitted.*--unsafe_code_execution"):
        sandbox.require_isolation(unsafe=False)
    assert sandbox.require_isolation(unsafe=True) is False
    monkeypatch.setattr(sandbox, "why_not_isolated", lambda: None)
    assert sandbox.require_isolation(unsafe=False) is True


def test_a_set_up_that_fails_says_why(monkeypatch):
    """As where the kernel refuses: the interpreter's folder is not what it should be."""
    monkeypatch.setattr(sandbox.sys, "base_prefix", "/nonexistent")
    sandbox.why_not_isolated.cache_clear()
    try:
        assert sandbox.why_not_isolated() is not None
    finally:
        sandbox.why_not_isolated.cache_clear()


@isolated
def test_a_started_program_is_killed_by_leaving_its_context():
    mark = f"context-{os.getpid()}"
    with Process(["-c", f"import time; time.sleep(60) # {mark}"], {}, QUICK):
        time.sleep(0.3)
    assert wait_until_gone(mark) == []
