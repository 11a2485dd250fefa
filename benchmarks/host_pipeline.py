"""Measures rows to batches on the host: `python -m benchmarks.host_pipeline [--pairs=100000]`.

Makes that many distinct pairs out of the built-in ones, then times each stage: tokenisation, the same from its cache,
the plan of an epoch, and the assembly of batches. The share of a step that waits for its batch follows: with assembly
in a thread of its own it is zero as long as a batch is ready before the step before it ends.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from smallr.data.packing import PackingPlan, Sizes
from smallr.data.pipeline import batches
from smallr.data.sources import load_rows
from smallr.data.tokenize import TokenizeOptions, tokenize
from smallr.models.loading import open_model


def distinct_pairs(source: str, split: str, count: int) -> datasets.Dataset:
    """Yields the pairs of the source, over and over, each with its number in the prompt."""
    rows = load_rows(source, split)

    def make() -> Iterator[dict[str, Any]]:
        for n in range(count):
            row = rows[n % len(rows)]
            yield {"prompt": f"{n}. {row['prompt']}", "chosen": row["chosen"], "rejected": row["rejected"]}

    return datasets.Dataset.from_list(list(make()))


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of its children that have ended, in seconds."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin:arithmetic/preference")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=32, help="packed rows a step")
    parser.add_argument("--row-length", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=200, help="batches to assemble")
    args = parser.parse_args()
    rows = distinct_pairs(args.data, args.split, args.pairs)
    tokenizer = open_model("tiny-random").tokenizer()
    options = TokenizeOptions("preference", args.row_length, chat=True)
    lines = []

    def timed(name: str, work: Any, unit: str, amount: float) -> Any:
        wall, cpu = time.perf_counter(), cpu_seconds()
        result = work()
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        lines.append(f"| {name} | {wall:.2f} | {cpu / wall:.2f} | {amount / wall:,.0f} {unit}/s |")
        return result

    with tempfile.TemporaryDirectory() as cache:
        folder = Path(cache)
        tokens = timed("tokenise", lambda: tokenize(rows, tokenizer, options, cache=folder), "pairs", args.pairs)
        timed("the same, from the cache", lambda: tokenize(rows, tokenizer, options, cache=folder), "pairs", args.pairs)
        sizes = Sizes.from_lengths(tokens.prefix_lengths, tokens.completion_lengths, tokens.num_scored)
        plan = timed("shape and plan", lambda: PackingPlan(sizes, args.rows, args.row_length), "pairs", args.pairs)
        timed("an epoch's steps", lambda: plan.num_steps(1), "pairs", args.pairs)
        count = min(args.steps, plan.num_steps(1))
        amount = count * args.rows * args.row_length
        columns = dict(tokens.columns)
        timed("batches", lambda: [None for _ in batches(plan, tokens, columns, 0, count, threads=0)], "tokens", amount)
    print(
        f"{args.pairs} pairs, {len(os.sched_getaffinity(0))} cores, steps of {args.rows} x {args.row_length} tokens\n"
    )
    print("| stage | s | cores busy | |\n|---|---|---|---|\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
