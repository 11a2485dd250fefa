"""Compares N completions of a prompt in one row with N rows `prompt + completion`: `python -m benchmarks.completions`.

Log-probs of every completion under a model, forward pass only. Both ways pack their examples into rows of a length of
their own and take turns; each is compiled before. The tokens are random, the lengths as they are given.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from smallr.core.sharding import make_mesh
from smallr.data.batch import ROLE_ANSWER, Completion, Example
from smallr.data.drops import DropReport
from smallr.data.packing import PackingPlan, Sizes
from smallr.data.token_set import TokenSet, write
from smallr.models.loading import load_decoder, open_model
from smallr.training.scoring import Scorer


def random_examples(count: int, completions: int, prompt: int, length: int, vocabulary: int) -> list[Example]:
    """Makes prompts of `prompt` tokens with completions of `length` tokens, a quarter more or less."""
    rng = np.random.default_rng(0)

    def completion() -> Completion:
        tokens = rng.integers(0, vocabulary, rng.integers(length * 3 // 4, length * 5 // 4 + 1)).astype(np.int32)
        return Completion(tokens, np.full(len(tokens), ROLE_ANSWER, np.int32))

    prefixes = rng.integers(0, vocabulary, (count, prompt)).astype(np.int32)
    return [
        Example(prefix, tuple(completion() for _ in range(completions)), {}, i) for i, prefix in enumerate(prefixes)
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--completions", type=int, default=5)
    parser.add_argument("--prompt_length", type=int, default=350)
    parser.add_argument("--length", type=int, default=80)
    parser.add_argument("--rows", type=int, default=2, help="packed rows a step")
    parser.add_argument("--row_lengths", default="1600,1792", help="of the shared and of the single rows")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    mesh, source = make_mesh(-1, 1, 1), open_model(args.model)
    scorer = Scorer(load_decoder(source, mesh, dtype=args.dtype), mesh)
    shared = random_examples(args.prompts, args.completions, args.prompt_length, args.length, source.config.vocab_size)
    single = [Example(e.prefix, (completion,), {}, e.row) for e in shared for completion in e.completions]
    lengths = dict(zip(("shared", "single"), map(int, args.row_lengths.split(",")), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        sets = {}
        for name, examples in (("shared", shared), ("single", single)):
            write(Path(folder) / name, examples, DropReport(name, lengths[name]))
            sets[name] = TokenSet(Path(folder) / name)
        seconds: dict[str, list[float]] = {name: [] for name in sets}
        found = {}
        for n in range(args.repeats + 1):
            for name, examples in sets.items():
                start = time.perf_counter()
                found[name] = dict(scorer.token_logps(examples, rows=args.rows, row_length=lengths[name]))
                if n:
                    seconds[name].append(time.perf_counter() - start)
        print("| rows | row length | tokens | padding | seconds | completions/s |\n" + "|---" * 6 + "|")
        for name, examples in sets.items():
            stats = PackingPlan(Sizes.of(examples), args.rows, lengths[name], shuffle=False).stats()
            taken = statistics.median(seconds[name])
            print(
                f"| {name} | {lengths[name]} | {stats.tokens} | {stats.padding:.0%} | {taken:.2f} | {len(single) / taken:.2f} |"
            )
    flat = [logps for i in range(len(shared)) for logps in found["shared"][i]]
    worst = max(np.abs(a - found["single"][i][0]).max() for i, a in enumerate(flat))
    ratio = statistics.median(a / b for a, b in zip(seconds["single"], seconds["shared"], strict=True))
    print(f"\nthroughput x {ratio:.2f}; largest difference of a token's log-prob {worst:.1e}")


if __name__ == "__main__":
    main()
