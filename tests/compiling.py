"""What tests compile otherwise than users: fewer widths of attention, and optimised code where a test computes for long.

Attention on the CPU compiles a program for each number of key tiles, up to eight; with up to two, a run on rows of 512
tokens starts in two thirds of the time. Tests of attention itself take the tiling of users, and so do the processes that
tests start, but for those whose numbers must have the same bits: `python -m tests.compiling MODULE ARGUMENTS`.
"""

from __future__ import annotations

import os
import runpy
import sys

USUAL = 8
# For jit's `compiler_options`: a program that runs for much longer than it compiles, unlike the suite's others.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
# The same in between, for a process that takes hundreds of steps: code ten times as fast for a third more of compiling.
OPTIMISED_ENVIRONMENT = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1 "
    "--xla_llvm_disable_expensive_passes=true".strip(),
}


def narrow(most: int = 2) -> None:
    """Takes at most so many key tiles at once from here on, in what is traced later."""
    from smallr.models import attention_xla

    attention_xla.CPU = attention_xla.CPU._replace(most=most)


def narrowed(command: list[str]) -> list[str]:
    """The same command line, `PYTHON -m MODULE ARGUMENTS`, with narrow tiles."""
    python, option, *rest = command
    return [python, option, "tests.compiling", *rest]


if __name__ == "__main__":
    narrow()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
