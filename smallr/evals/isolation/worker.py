"""Answers lines of JSON as a worker of `pool.Pool`.

Arguments: `module:function`, its address space in bytes, processor seconds of one call, the pool's process.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Lets the kernel end this process with the pool's, also where that ended before this call."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def limit_processor(seconds: float) -> None:
    """Gives the next call so much processor time; the kernel then ends the process, whatever it does."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def answer(function, line: str) -> str:
    """Returns the reply to one line."""
    try:
        return json.dumps({"value": function(**json.loads(line))})
    except (Exception, RecursionError, MemoryError) as error:
        return json.dumps({"error": f"{type(error).__name__}: {error}"[:300]})


def main() -> None:
    """Calls the function with each line's keywords and writes what it returns, until the input ends."""
    target, memory, seconds, parent = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    die_with_parent(parent)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries that print would break the protocol
    module, _, name = target.partition(":")
    imported = importlib.import_module(module)
    function = getattr(imported, name)
    getattr(imported, "prepare", int)()  # what a first call would have to wait for
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps("ready"), file=answers, flush=True)  # from here on time counts
    for line in sys.stdin:
        limit_processor(seconds)
        print(answer(function, line), file=answers, flush=True)


if __name__ == "__main__":
    main()
