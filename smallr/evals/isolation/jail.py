"""Runs one program in Linux namespaces. Started by `sandbox.py` as a file of its own; imports the standard library alone.

    launcher ── setup process ── init (pid 1 of the sandbox) ── the program

The setup process takes new user, mount, pid, network, ipc and host-name namespaces; the launcher gives it its ids.
Init builds a root of its own from an empty tmpfs, with the interpreter and the system's libraries read-only, and leaves
the old one. When the program ends, init ends, and the kernel kills what is left of the process tree. The report goes
through a pipe that the program does not have. Killing any of the three kills all: each asks for a signal at its parent's
death, and then looks whether the parent still lives.

See user_namespaces(7), pid_namespaces(7), pivot_root(2), session-keyring(7), seccomp(2).
"""

import contextlib
import ctypes
import itertools
import json
import os
import resource
import select
import signal
import sys

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
KEYCTL, KEYCTL_JOIN_SESSION_KEYRING = {"x86_64": 250, "aarch64": 219}, 1

# System calls that no solution needs: memory that no limit counts, keyrings, other processes, new namespaces.
REFUSED = (
    "shmget", "shmat", "shmctl", "semget", "semctl", "msgget", "msgctl", "mq_open", "memfd_create",
    "memfd_secret", "io_uring_setup", "userfaultfd", "add_key", "request_key", "keyctl", "ptrace",
    "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "bpf", "perf_event_open", "unshare",
    "setns", "mount", "umount2", "pivot_root", "fsopen", "fsmount", "open_tree", "move_mount",
)  # fmt: skip
SCMP_ACT_ALLOW, SCMP_ACT_ERRNO, SCMP_CMP_MASKED_EQ = 0x7FFF0000, 0x00050000, 7
EPERM, ENOSYS = 1, 38
# Where the kernel counts what a namespace may hold; written from inside, so that the host keeps its own values.
COUNTS = {
    "user/max_user_namespaces": "0",  # in a new one a program could mount file systems in memory
    "kernel/shmall": "0",
    "kernel/msgmni": "0",
    "kernel/sem": "1 1 1 0",
}

INSIDE = 1000  # the program's user id inside
OUTSIDE = 65534  # and outside, where the launcher is root: nobody, whose number of processes is limited (root's is not)
HOME = "/work"
ROOT = "/proc"  # where the new root is put together: any folder will do, and this one exists and is not needed inside
SYSTEM = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64")  # shared libraries

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raises the C library's error."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Makes the system call; None is a null pointer."""
    args = [None if text is None else text.encode() for text in (source, target, kind)]
    check(libc.mount(*args, ctypes.c_ulong(flags), None if data is None else data.encode()), f"mount {target}")


def prctl(option: int, value: int) -> None:
    """Makes the system call with one argument."""
    check(libc.prctl(option, value, 0, 0, 0), f"prctl {option}")


def die_with_parent(number: int, parent: int) -> None:
    """Asks for a signal at the parent's death; ends this process if the parent was dead before."""
    prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def leave_keyring() -> None:
    """Joins a new session keyring: the one that is inherited holds the user's keys."""
    if (number := KEYCTL.get(os.uname().machine)) is not None:
        libc.syscall(number, KEYCTL_JOIN_SESSION_KEYRING, None)  # fails where there are no keyrings


class Comparison(ctypes.Structure):
    """Mirrors libseccomp's `struct scmp_arg_cmp`."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("mask", ctypes.c_uint64), ("value", ctypes.c_uint64))


def refuse_system_calls() -> None:
    """Loads a filter made by libseccomp; does nothing where the library is not installed."""
    try:
        seccomp = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(SCMP_ACT_ALLOW))

    def refuse(name: str, error: int, comparisons: tuple = ()) -> None:
        call = seccomp.seccomp_syscall_resolve_name(name.encode())
        array = (Comparison * len(comparisons))(*comparisons)
        result = seccomp.seccomp_rule_add_array(context, SCMP_ACT_ERRNO | error, call, len(comparisons), array)
        if result != 0 and call >= 0:  # calls that this library does not know, or that the machine lacks, are negative
            raise OSError(-result, f"seccomp: {name}: {os.strerror(-result)}")

    for name in REFUSED:
        refuse(name, EPERM)
    refuse("clone", EPERM, (Comparison(0, SCMP_CMP_MASKED_EQ, CLONE_NEWUSER, CLONE_NEWUSER),))
    refuse("clone3", ENOSYS)  # its flags cannot be read; the C library then uses clone
    if (result := seccomp.seccomp_load(context)) != 0:
        raise OSError(-result, f"seccomp: {os.strerror(-result)}")
    seccomp.seccomp_release(context)


def set_ids(pid: int) -> None:
    """Sets from outside which ids a process in a new user namespace has."""
    uid, gid = os.geteuid(), os.getegid()
    # Root keeps itself as the namespace's root, so that it can reach an interpreter in its home; the program is nobody.
    users = f"0 0 1\n{INSIDE} {OUTSIDE} 1" if uid == 0 else f"{INSIDE} {uid} 1"
    groups = f"0 0 1\n{INSIDE} {OUTSIDE} 1" if uid == 0 else f"{INSIDE} {gid} 1"
    for name, text in (("setgroups", "deny"), ("uid_map", users), ("gid_map", groups)):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(text)


def bind(source: str, root: str, target: str | None = None) -> None:
    """Shows a file or folder of the host read-only at the same place below `root`, or at `target`."""
    inside = root + (target or source)
    if os.path.islink(source) and target is None:
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        os.symlink(os.readlink(source), inside)
        return
    if os.path.isdir(source):
        os.makedirs(inside, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        os.close(os.open(inside, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(source, inside, None, MS_BIND | MS_REC)
    flags = os.statvfs(inside).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)  # those of the host's mount must stay
    mount("none", inside, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | flags)


def build_root(spec: dict) -> None:
    """Makes an empty root with what Python needs; the old one is gone afterwards."""
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    root = ROOT
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    prefix = spec["prefix"]
    library = f"{prefix}/lib/{spec['version']}"
    shared = [f"{prefix}/lib/{name}" for name in os.listdir(f"{prefix}/lib") if name.startswith("libpython")]
    for path in (*SYSTEM, spec["python"], library, *shared):
        if os.path.lexists(path) and not os.path.lexists(root + path):
            bind(path, root)
    for packages in ("site-packages", "dist-packages"):
        if os.path.isdir(f"{root}{library}/{packages}"):
            mount("tmpfs", f"{root}{library}/{packages}", "tmpfs", MS_RDONLY, "size=4k,mode=755")
    for name in ("null", "zero", "urandom"):
        bind(f"/dev/{name}", root, f"/dev/{name}")
    os.mkdir(root + HOME)
    mount("tmpfs", root + HOME, "tmpfs", MS_NOSUID | MS_NODEV, f"size={spec['disk_bytes']},nr_inodes=1024,mode=755")
    for name, text in spec["files"].items():
        with open(f"{root}{HOME}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    if os.geteuid() == 0:
        for folder, _, names in os.walk(root + HOME):
            for path in (folder, *(f"{folder}/{name}" for name in names)):
                os.chown(path, INSIDE, INSIDE)
    os.symlink(HOME, root + "/tmp")
    os.mkdir(root + "/old")
    os.chdir(root)
    check(libc.syscall(PIVOT_ROOT[os.uname().machine], b".", b"old"), "pivot_root")
    os.chdir("/")
    check(libc.umount2(b"/old", MNT_DETACH), "umount")
    os.rmdir("/old")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def limit(limits: dict) -> None:
    """Sets resource limits of the program and all it starts; see getrlimit(2)."""
    for name, value in limits.items():
        # A hard limit one above, so that the soft one's signal tells a CPU time-out apart.
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value + 1 if name == "CPU" else value))


def execute(spec: dict, parent: int) -> None:
    """Becomes the program."""
    os.setsid()
    keep = spec["keep"]
    limit(spec["limits"])
    if spec["isolate"] and os.geteuid() == 0:
        os.setresgid(INSIDE, INSIDE, INSIDE)
        os.setresuid(INSIDE, INSIDE, INSIDE)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    die_with_parent(signal.SIGKILL, parent)
    refuse_system_calls()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    edges = [2, *sorted(keep), 1024]
    for low, high in itertools.pairwise(edges):
        os.closerange(low + 1, high)
    for fd in keep:
        os.set_inheritable(fd, True)
    home = HOME if spec["isolate"] else spec["folder"]
    os.chdir(home)
    environment = {"HOME": home, "TMPDIR": home, "LANG": "C.UTF-8", "PATH": "", "PYTHONHASHSEED": "0"}
    os.execve(spec["python"], [spec["python"], "-I", "-B", "-S", *spec["argv"]], environment)


def supervise(spec: dict, report: int) -> None:
    """Runs the program as a child, buries what it leaves, and reports how it ended."""
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            execute(spec, parent)
        except BaseException as error:
            os.write(2, f"sandbox: {error}\n".encode())
        os._exit(127)
    while True:
        pid, status = os.wait()
        if pid == child:
            break
    os.write(report, json.dumps({"returncode": os.waitstatus_to_exitcode(status)}).encode())


def guarded(report: int, step, *args) -> None:
    """Runs the last step of a process; a failure of the set-up is reported in words."""
    try:
        step(*args)
    except BaseException as error:
        os.write(report, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        os._exit(1)
    os._exit(0)


def init(spec: dict, report: int, alive: int) -> None:
    """Runs as pid 1 of the sandbox. The parent is outside, where `getppid` does not see it: `alive` is a pipe from it."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if select.select([alive], [], [], 0)[0]:  # its end: nothing is ever written
        os._exit(1)
    build_root(spec)
    prctl(PR_SET_DUMPABLE, 0)  # the program must not look into this process
    supervise(spec, report)


def set_counts() -> None:
    """Limits what the new namespaces may hold."""
    for name, text in COUNTS.items():
        # Read-only in some containers, and the last three are root's alone: the filter of system calls is there as well.
        with contextlib.suppress(OSError), open(f"/proc/sys/{name}", "w") as file:
            file.write(text)


def set_up(spec: dict, report: int, mapped: int, ready: int, launcher: int) -> None:
    """Takes the namespaces, waits for ids, and waits for init."""
    die_with_parent(signal.SIGKILL, launcher)
    spaces = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    check(libc.unshare(spaces), "unshare")
    os.write(ready, b"1")
    if os.read(mapped, 1) != b"1":
        raise OSError("no ids were given")
    set_counts()
    alive, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(held)
        guarded(report, init, spec, report, alive)
    os.waitpid(child, 0)


def children(pid: int) -> list[int]:
    """Returns the direct children of a process."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def kill_descendants() -> None:
    """Kills what this process, a subreaper, has below it; orphans become its children, so none is missed."""
    while found := children(os.getpid()):
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        for pid in found:
            os.waitpid(pid, 0)


def without_isolation(spec: dict, report: int) -> None:
    """Runs the program in a folder of the host, with limits and nothing else."""

    def stop(*_) -> None:
        kill_descendants()
        os._exit(1)

    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_DUMPABLE, 0)  # the program, of the same user, must not reach this process' files
    signal.signal(signal.SIGTERM, stop)
    die_with_parent(signal.SIGTERM, spec["parent"])  # not SIGKILL: what is below has to be killed first
    for name, text in spec["files"].items():
        with open(f"{spec['folder']}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    supervise(spec, report)
    kill_descendants()


def launch(spec: dict, report: int) -> None:
    """Runs as the first process: gives ids to the second, or runs the program at once where nothing is isolated."""
    die_with_parent(signal.SIGKILL, spec["parent"])
    leave_keyring()
    if spec["group"] is not None:
        with contextlib.suppress(OSError), open(f"{spec['group']}/cgroup.procs", "w") as file:
            file.write("0")  # this process, and so all that it starts
    if not spec["isolate"]:
        without_isolation(spec, report)
        return
    mapped, give = os.pipe()
    wait, ready = os.pipe()
    launcher = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(give)
        guarded(report, set_up, spec, report, mapped, ready, launcher)
    os.close(ready)
    if os.read(wait, 1) == b"1":
        set_ids(child)
        os.write(give, b"1")
    os.waitpid(child, 0)


def main() -> None:
    """Reads the specification from a descriptor; reports to another."""
    source, report = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(report, False)
    with os.fdopen(source) as file:
        spec = json.load(file)
    guarded(report, launch, spec, report)


if __name__ == "__main__":
    main()
