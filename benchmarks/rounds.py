"""Measures what a round costs: python -m benchmarks.rounds [--model=smollm2-135m-instruct] [--rounds=3]

A round of training is `set_data`, then `fit(until=…)`, with no generation in it. Two figures are printed for each round:
the seconds of one step on rows that are there already, and the seconds of a round of one step, rows and checkpoint
included. Their difference is what an empty round costs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

from ml_collections import ConfigDict

from smallr.config import finish, preference
from smallr.data.sources import load_rows
from smallr.training.trainer import Trainer


def config_of(model: str, reference: str, steps: int) -> ConfigDict:
    """Returns a run on rows of one shape."""
    config = preference("sigmoid", {"small": 0.1, "medium": 0.2, "large": 0.5})
    config.model, config.objective.reference = model, reference
    config.data.eval = ""
    config.batch.scored, config.batch.examples = 512, 8
    config.epochs, config.steps, config.checkpoint.every = 0, steps, 10**6
    return finish(config, None)


def measure(model: str, reference: str, rounds: int, pairs: int) -> list[dict[str, float]]:
    """Runs rounds of two steps each; the first compiles and is left out.

    Returns:
      Of each round the seconds of `set_data`, of `fit` up to the first step, of a further step, and of the checkpoint.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config_of(model, reference, 2 * rounds + 4), Path(folder))
        with trainer:
            trainer.load()
            for n in range(rounds + 1):
                rows = list(load_rows("builtin:arithmetic/preference", f"train[{n * pairs}:{(n + 1) * pairs}]"))
                start = time.perf_counter()
                trainer.set_data(rows)
                data = time.perf_counter()
                trainer.fit(until=2 * n + 1)
                first = time.perf_counter()
                trainer.fit(until=2 * n + 2)
                second = time.perf_counter()
                found.append({"data": data - start, "first": first - data, "second": second - first})
    return found[1:]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--reference", default="none", help="none | live | cached: cached adds a pass over the rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=8, help="rows of a round")
    args = parser.parse_args()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        rounds = measure(args.model, args.reference, args.rounds, args.pairs)
    print("\n".join(line for line in said.getvalue().splitlines() if line.startswith("programs")))
    print(
        "\n| round | set_data, s | fit of its first step, s | fit of another step, s | the round without its step, s |"
    )
    print("|---|---|---|---|---|")
    for n, each in enumerate(rounds, 1):
        empty = each["data"] + each["first"] - each["second"]
        print(f"| {n} | {each['data']:.2f} | {each['first']:.2f} | {each['second']:.2f} | {empty:.2f} |")
    empty = statistics.median(each["data"] + each["first"] - each["second"] for each in rounds)
    print(f"\nAn empty round costs {empty:.2f} s (median of {args.rounds}); both fits begin a checkpoint.")


if __name__ == "__main__":
    main()
