"""Sets a memory limit on a whole process tree, where this user may: cgroups(7), version 1 or 2.

It counts what limits of single processes do not: shared memory, files in memory, and many processes together.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import time
from pathlib import Path

_MOUNT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of version 2 and of version 1
_SWAP = {"memory.max": ("memory.swap.max", "0"), "memory.limit_in_bytes": ("memory.memsw.limit_in_bytes", "")}
_numbers = itertools.count()


def create(limit_bytes: int) -> Path | None:
    """Makes a group below this process' own and gives its folder; None where that is not possible.

    A process joins by writing 0 to the folder's `cgroup.procs`; its children are then in the group too.
    """
    parent = _parent()
    if parent is None:
        return None
    group = parent / f"smallr-{os.getpid()}-{next(_numbers)}"
    try:
        group.mkdir()
        name = next(name for name in _LIMITS if (group / name).exists())
        (group / name).write_text(str(limit_bytes))
    except (OSError, StopIteration):
        with contextlib.suppress(OSError):
            group.rmdir()
        return None
    swap, value = _SWAP[name]
    with contextlib.suppress(OSError):  # where swap is not counted
        (group / swap).write_text(value or str(limit_bytes))
    return group


def remove(group: Path) -> None:
    """Removes a group once its last process, which was killed before, is gone."""
    for _ in range(100):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.01)


@functools.cache
def _parent() -> Path | None:
    """Returns the folder of this process' own group, if groups with a memory limit can be made in it."""
    for folder in _own_groups():
        with contextlib.suppress(OSError):  # refused where processes are in the group itself, unless it was done before
            (folder / "cgroup.subtree_control").write_text("+memory")
        trial = folder / f"smallr-{os.getpid()}-{next(_numbers)}"
        try:
            trial.mkdir()
        except OSError:
            continue
        usable = any((trial / name).exists() for name in _LIMITS)
        trial.rmdir()
        if usable:
            _remove_stale(folder)
            return folder
    return None


def _own_groups() -> list[Path]:
    """Returns where this process' groups may be: below the mounts of version 1 and 2, or those themselves in a container."""
    found = []
    with contextlib.suppress(OSError):
        for line in _OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                mount = _MOUNT / "memory" if controllers else _MOUNT
                found += [mount / path.lstrip("/"), mount]
    return [folder for folder in found if (folder / "cgroup.procs").exists()]


def _remove_stale(folder: Path) -> None:
    """Removes empty groups of evaluations that were killed."""
    for group in folder.glob("smallr-*-*"):
        owner = group.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(OSError):
                group.rmdir()
