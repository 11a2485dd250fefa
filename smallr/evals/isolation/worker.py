"""A worker of `pool.Pool`: answers lines of JSON. Arguments: `module:function`, and its address space in bytes."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys


def main() -> None:
    """Calls the function with each line's keywords and writes what it returns, until the input ends."""
    target, memory = sys.argv[1], int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries that print would break the protocol
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    print(json.dumps("ready"), file=answers, flush=True)  # from here on time counts
    for line in sys.stdin:
        try:
            reply = {"value": function(**json.loads(line))}
        except (Exception, RecursionError, MemoryError) as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
