"""Finds benchmarks by name. A new one is one entry in the module of its kind; see docs/evaluation.md."""

from __future__ import annotations

from smallr.core.errors import UserError
from smallr.data.errors import nearest
from smallr.evals.benchmarks import answers, choices, code
from smallr.evals.benchmarks.base import Benchmark, Generation, Likelihood

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for module in (answers, code, choices) for benchmark in module.BENCHMARKS
}


def find(name: str) -> Benchmark:
    """Returns the benchmark of that name.

    Raises:
      UserError: there is none; the message lists all.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    kinds = (("answered in text", Generation), ("by likelihood", Likelihood))
    lists = "; ".join(
        f"{title}: {', '.join(sorted(key for key, value in BENCHMARKS.items() if isinstance(value, kind)))}"
        for title, kind in kinds
    )
    raise UserError(f"benchmark {name!r} is not known{nearest(name, BENCHMARKS)}. There are, {lists}")
