"""Lets one process at a time work in a folder, or at an output: a second one is refused at once and told who is first.

A locked folder has a file `.lock`, and an output that does not exist yet has one beside it (`.NAME.lock`). On it the
process holds an advisory lock of the operating system (`flock`), and in it the process says who it is. The operating
system frees the lock when the process ends, however it ends, so what a dead process has left is taken over. Where the
file system does not share such locks among machines, the file itself tells: its holder touches it every few seconds, and
it counts as left behind when that has stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import threading
import time
from pathlib import Path

from smallr.core.errors import UserError
from smallr.core.files import FileError, host_name, is_alive

LOCK = ".lock"
BEAT_SECONDS = 5.0  # between two touches of a held lock's file
SILENT_SECONDS = 30.0  # without a touch, after which a holder on another machine counts as dead
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of file systems that have no locks
_held: dict[tuple[int, int, str], FolderLock] = {}  # by device and inode of the folder, and name of the lock's file


class LockedError(UserError):
    """Says that another process works in the folder."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Describes who holds a lock."""

    host: str
    pid: int

    def __str__(self) -> str:
        here = self.host == host_name()
        itself = here and self.pid == os.getpid()
        return f"process {self.pid} on {self.host}" + (" (this process)" if itself else "")


class FolderLock:
    """Locks a folder, inside a `with` block or from `acquire` to `release`.

    It may be taken again by the thread that holds it: a stage locks its folder, and so does the training inside it.

    Args:
      folder: made if it is missing.
      what: what the folder holds, for messages: "run", "CRV run", …
      name: of the lock's file.
    """

    def __init__(self, folder: Path, what: str = "run", name: str = LOCK):
        self.folder, self._what = Path(folder), what
        self._path = self.folder / name
        self._descriptor = -1
        self._thread, self._depth = 0, 0
        self._outer: FolderLock | None = None
        self._key: tuple[int, int, str] = (0, 0, name)
        self._ended = threading.Event()

    def __enter__(self) -> FolderLock:
        """Takes the lock; see `acquire`."""
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Frees it."""
        self.release()

    def acquire(self, *, wait: bool = False) -> None:
        """Takes the lock.

        Args:
          wait: wait until it is free, for short work such as an entry of a cache; else be refused at once.

        Raises:
          LockedError: another process, or another thread of this one, holds it; the message names host and process.
          FileError: the folder cannot be written.
        """
        with _readable_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            status = self.folder.stat()
        self._key = (status.st_dev, status.st_ino, self._path.name)
        outer = _held.get(self._key)
        if outer is not None and outer._is_mine():
            self._outer = outer
            outer._depth += 1
            return
        while not self._try():
            if not wait:
                raise LockedError(self._refusal())
            time.sleep(0.05)
        self._thread, self._depth = threading.get_ident(), 1
        _held[self._key] = self
        self._ended.clear()
        threading.Thread(target=self._beat, name=f"lock of {self.folder}", daemon=True).start()

    def release(self) -> None:
        """Frees the lock, or one level of it where the thread has taken it several times. A second call does nothing."""
        owner, self._outer = self._outer or self, None
        if owner._depth == 0:
            return
        owner._depth -= 1
        if owner._depth == 0:
            owner._ended.set()
            _held.pop(owner._key, None)
            with contextlib.suppress(OSError):
                owner._path.unlink()
            owner._close()

    def _try(self) -> bool:
        """Takes the lock of the operating system if it is free and nobody on another machine is alive."""
        while True:
            with _readable_errors(self.folder):
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            supported = True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except OSError as error:
                supported = error.errno not in _UNSUPPORTED
                if supported:
                    os.close(descriptor)
                    raise FileError(f"{self._path} cannot be locked: {error.strerror}") from error
            if _is_file_of(descriptor, self._path):
                break
            os.close(descriptor)  # its holder has removed it in the meantime
        before = _written_in(self._path)
        if before is not None and _is_held_elsewhere(before, self._path, supported):
            os.close(descriptor)
            return False
        me = json.dumps(dataclasses.asdict(Holder(host_name(), os.getpid()))) + "\n"
        try:
            with _readable_errors(self.folder):  # a full disk
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, me.encode(), 0)
        except FileError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def _is_mine(self) -> bool:
        """Returns whether this thread holds the lock; it does not if the folder was deleted and made again."""
        return self._thread == threading.get_ident() and _is_file_of(self._descriptor, self._path)

    def _refusal(self) -> str:
        holder = _written_in(self._path)
        who = str(holder) if holder is not None else "another process"
        text = f"{self._place()}: {who} works on this {self._what}"
        if holder is not None and holder.host != host_name():
            text += f"; if it has ended, the lock is free {SILENT_SECONDS:.0f} seconds later"
        return f"{text}. Wait for it, stop it, or choose another place."

    def _place(self) -> Path:
        """What the lock is of: the folder, or the output beside which the lock's file stands."""
        name = self._path.name
        return self.folder if name == LOCK else self.folder / name.removeprefix(".").removesuffix(LOCK)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(self._path)

    def _close(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1


def output_lock(path: Path, what: str = "output") -> contextlib.AbstractContextManager[FolderLock | None]:
    """Locks a file or folder that a command is to write, which need not be there yet.

    The lock stands beside it, so that the output itself appears whole or not at all. What is neither a file nor a folder
    (a pipe, /dev/stdout) may have several writers.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        return contextlib.nullcontext()
    return FolderLock(path.parent, what, f".{path.name}{LOCK}")


def holder_of(folder: Path) -> Holder | None:
    """Returns who has written himself into the folder's lock file, dead or alive; None if there is no readable one."""
    return _written_in(Path(folder) / LOCK)


def _written_in(path: Path) -> Holder | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Holder(str(found["host"]), int(found["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def living_holder(folder: Path) -> Holder | None:
    """Returns who works in a folder now; None if nobody does. It takes no lock and changes nothing."""
    path = Path(folder) / LOCK
    holder = holder_of(folder)
    if holder is None:
        return None
    if holder.host != host_name():
        return holder if _is_held_elsewhere(holder, path, True) else None
    return holder if is_alive(holder.pid) else None


def _is_held_elsewhere(holder: Holder, path: Path, supported: bool) -> bool:
    """Returns whether a holder may be alive although the operating system would give its lock away."""
    if holder.host == host_name():
        return not supported and holder.pid != os.getpid() and is_alive(holder.pid)
    try:
        return time.time() - path.stat().st_mtime < SILENT_SECONDS
    except OSError:
        return False


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        named, opened = path.stat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


@contextlib.contextmanager
def _readable_errors(folder: Path):
    try:
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise FileError(f"{folder} is a file, or stands below one, where a folder should be: choose another") from error
    except OSError as error:
        raise FileError(f"{folder} cannot be written: {error.strerror or error}") from error


def _forget() -> None:
    """Closes the inherited descriptors in a forked child: they would keep the lock when its real holder has died."""
    for lock in _held.values():
        lock._close()
        lock._depth = 0
    _held.clear()


os.register_at_fork(after_in_child=_forget)
