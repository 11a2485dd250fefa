"""What tests compile otherwise than users: fewer widths of attention, one layer where sampling takes six at once, and
optimised code where a test computes for long.

Attention on the CPU compiles a program for each number of key tiles, up to eight; with up to two, a run on rows of 512
tokens starts in two thirds of the time. Tests of attention itself take the tiling of users, and so do the processes that
tests start, but for those whose numbers must have the same bits: `python -m tests.compiling MODULE ARGUMENTS`.

Forward passes of runs are compiled to code ten times as fast: that costs 0.1 s a program, unlike that of steps, which
takes a few seconds more to compile than the few steps of a test take to run.
"""

from __future__ import annotations

import os
import runpy
import sys
import types
from collections.abc import Callable
from typing import Any

import jax

USUAL = 8
FORWARD = {"xla_backend_optimization_level": 1}  # jit's `compiler_options` of forward passes
# For jit's `compiler_options`: a program that runs for much longer than it compiles, unlike the suite's others.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
# The same in between, for a process that takes hundreds of steps: code ten times as fast for a third more of compiling.
OPTIMISED_ENVIRONMENT = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=1 "
    "--xla_llvm_disable_expensive_passes=true".strip(),
}


def narrow(most: int = 2) -> None:
    """Takes at most so many key tiles at once from here on, in what is traced later, and found nowhere."""
    from smallr.core import traced
    from smallr.models import attention_xla

    traced.is_kept = False
    attention_xla.CPU = attention_xla.CPU._replace(most=most)


def one_layer_a_call() -> None:
    """Lets sampling run one layer in each call from here on, so that layers are compiled once and not six times."""
    from smallr.sampling import forward

    forward.MOST_LAYERS = 1


def optimise_forward_passes() -> None:
    """Compiles evaluations and scorers of runs to faster code from here on."""
    from smallr.training import scoring, step

    def jit(function: Callable, **options: Any) -> Callable:
        forward = function.__name__ in ("evaluation", "<lambda>")  # of `Evaluation` and `Scorer`
        return jax.jit(function, **options, **({"compiler_options": FORWARD} if forward else {}))

    for module in (scoring, step):
        module.jax = types.SimpleNamespace(**{**vars(jax), "jit": jit})


def compile_as_tests_do() -> None:
    """Does all of this, in a process of the suite."""
    narrow()
    one_layer_a_call()
    if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1":
        optimise_forward_passes()


def narrowed(command: list[str]) -> list[str]:
    """The same command line, `PYTHON -m MODULE ARGUMENTS`, with narrow tiles."""
    python, option, *rest = command
    return [python, option, "tests.compiling", *rest]


if __name__ == "__main__":
    compile_as_tests_do()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
