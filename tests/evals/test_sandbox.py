"""What a program in the sandbox can not do; and what is left of it afterwards."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smallr.core.errors import UserError
from smallr.evals.isolation import cgroups, sandbox
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
import ctypes
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
import ctypes
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
import ctypes
import os
for fd in range(3, 64):
    try:
        os.write(fd, b'{"returncode": 0}')
    except OSError:
        pass
os._exit(9)
"""
    assert python(code).returncode == 9


@pytest.mark.process
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


# --- what is left when the evaluation is killed


def alive(pid: int, mark: str) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


@pytest.mark.process
@pytest.mark.parametrize("isolate", BOTH)
def test_a_launcher_does_not_outlive_an_evaluation_that_is_killed_at_once(isolate):
    """Also where the evaluation ends before the launcher has asked for a signal at its death."""
    mark = f"at-once-{os.getpid()}-{isolate}"
    code = f"""
import os, sys, time
from smallr.evals.isolation.sandbox import Limits, Process
process = Process(["-c", "import time; time.sleep(60) # {mark}"], {{}}, Limits(wall_seconds=60), isolate={isolate})
time.sleep(float(sys.argv[1]))
os.write(1, str(process._process.pid).encode())
os.kill(os.getpid(), 9)
"""
    delays = ["0", "0", "0.002", "0.005", "0.01", "0.015", "0.02", "0.03", "0.05", "0.1"]
    callers = [subprocess.Popen([sys.executable, "-c", code, delay], stdout=subprocess.PIPE) for delay in delays]
    launchers = [int(caller.communicate()[0]) for caller in callers]
    assert [caller.returncode for caller in callers] == [-9] * len(delays)
    assert wait_until_gone(mark) == []
    for _ in range(50):
        if not any(alive(pid, "jail.py") for pid in launchers):
            break
        time.sleep(0.1)
    assert [pid for pid in launchers if alive(pid, "jail.py")] == []


def spin(seconds: float) -> None:
    """Work at full speed, inside C code."""
    sum(range(10**15))


@pytest.mark.process
def test_a_worker_at_full_speed_does_not_outlive_its_pool():
    code = f"""
import os, threading, time
from smallr.evals.isolation.pool import Pool
pool = Pool("{__name__}:spin", workers=1, seconds=60)
threading.Thread(target=pool.map, args=([{{"seconds": 60}}],), daemon=True).start()
time.sleep(1)
os.kill(os.getpid(), 9)
"""
    mark = f"{__name__}:spin"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert wait_until_gone(mark) == []


@pytest.mark.process
def test_a_worker_has_its_processor_time_and_no_more():
    command = [
        sys.executable,
        "-m",
        "smallr.evals.isolation.worker",
        f"{__name__}:spin",
        str(1 << 30),
        "0.1",
        str(os.getpid()),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout.readline() == b'"ready"\n'
        worker.stdin.write(b'{"seconds": 60}\n')
        worker.stdin.flush()
        assert worker.wait(30) == -24  # SIGXCPU
    other = [*command[:-1], "1"]  # of another parent: it ends at once
    assert subprocess.run(other, stdin=subprocess.DEVNULL, check=False).returncode == 1


# --- memory that no limit of a process counts, keys, namespaces

CALLS = """
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
arm = platform.machine() == 'aarch64'
CLONE_NEWUSER = 0x10000000
calls = {
    'shmget': (194 if arm else 29, 0, 1 << 28, 0o1600),
    'memfd_create': (279 if arm else 319, b'x', 0),
    'msgget': (186 if arm else 68, 0, 0o1600),
    'semget': (190 if arm else 64, 0, 32000, 0o1600),
    'mq_open': (180 if arm else 240, b'x', 0o102, 0o600, None),
    'io_uring_setup': (425, 8, ctypes.create_string_buffer(200)),
    'add_key': (217 if arm else 248, b'user', b'k', b'v', 1, -3),
    'request_key': (218 if arm else 249, b'user', b'smallr-test', None, -3),
    'keyctl': (219 if arm else 250, 7, -3, 0, 0, 0),
    'ptrace': (117 if arm else 101, 0, 0, 0, 0),
    'unshare': (97 if arm else 272, CLONE_NEWUSER),
    'clone': (220 if arm else 56, CLONE_NEWUSER | 17, 0, 0, 0, 0),
}
for name, (number, *arguments) in calls.items():
    if libc.syscall(number, *arguments) >= 0:
        print(name)
"""


def has_seccomp() -> bool:
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_seccomp(), reason="libseccomp.so.2 is not installed")
@pytest.mark.parametrize("isolate", BOTH)
def test_system_calls_that_no_solution_needs_are_refused(isolate):
    outcome = python(CALLS, isolate=isolate)
    assert (outcome.returncode, outcome.stdout) == (0, b"")
    threads = "import threading\nt = threading.Thread(target=print, args=('hi',))\nt.start()\nt.join()"
    assert python(threads, isolate=isolate).stdout == b"hi\n"  # they start by clone3, and by clone where it is refused


@isolated
def test_new_namespaces_and_shared_memory_are_counted_without_the_filter_too(monkeypatch, tmp_path):
    jail = tmp_path / "jail.py"
    jail.write_text(Path(sandbox._JAIL).read_text().replace("libseccomp.so.2", "no-such-library"))
    monkeypatch.setattr(sandbox, "_JAIL", jail)
    made = python(CALLS).stdout.decode().split()
    assert not {"unshare", "clone", "request_key"} & set(made)
    if os.geteuid() == 0:
        assert not {"shmget", "msgget", "semget"} & set(made)


@pytest.mark.process
@pytest.mark.parametrize("isolate", BOTH)
def test_the_users_keys_are_out_of_reach(isolate, monkeypatch, tmp_path):
    """Even without the filter: the program has a session keyring of its own."""
    jail = tmp_path / "jail.py"
    jail.write_text(Path(sandbox._JAIL).read_text().replace("libseccomp.so.2", "no-such-library"))
    code = f"""
import ctypes, pathlib, platform
from smallr.evals.isolation import cgroups, sandbox
sandbox._JAIL = pathlib.Path({str(jail)!r})
libc = ctypes.CDLL(None, use_errno=True)
first = 217 if platform.machine() == 'aarch64' else 248
libc.syscall(first + 2, 1, b"smallr-test-ring")
key = libc.syscall(first, b"user", b"smallr-test-key", b"secret", 6, -3)
look = "import ctypes; print(ctypes.CDLL(None).syscall(%d, b'user', b'smallr-test-key', None, 0))" % (first + 1)
print(key > 0, libc.syscall(first + 1, b"user", b"smallr-test-key", None, 0) == key)
print(sandbox.run(["-c", look], {{}}, isolate={isolate}).stdout.decode())
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    if lines[0] != "True True":
        pytest.skip("this host has no keyrings")
    assert lines[1] == "-1"


@pytest.mark.slow
@pytest.mark.skipif(cgroups._parent() is None, reason="no cgroup with a memory limit can be made here")
@pytest.mark.parametrize("isolate", BOTH)
def test_processes_share_one_limit_of_memory(isolate):
    code = """
import os, sys, time
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        data = bytearray(150 << 20)
        data[::4096] = b"x" * len(range(0, len(data), 4096))
        time.sleep(1)
        os._exit(0)
    children.append(child)
print(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""
    limits = Limits(wall_seconds=20, memory_bytes=256 << 20, processes=8)
    killed = python(code, limits, isolate=isolate).stdout
    assert killed in (b"1\n", b"2\n", b"3\n", b"")  # of all: 450 MiB, where 256 are allowed
    assert python(code.replace("range(3)", "range(1)"), limits, isolate=isolate).stdout == b"0\n"
    assert not list(cgroups._parent().glob(f"smallr-{os.getpid()}-*"))
