"""Memory for data sets beyond it: `python -m benchmarks.large_data [--megabytes=1000 --tokenised=100]`.

Writes a synthetic file of JSON lines (prompt and completion), reads it, and tokenises its first rows; then writes a token
store of the size of the whole file's, from examples made on the fly. For each stage: seconds, and the highest memory that
was the process's own (RssAnon: without mapped files, which the system takes back when it needs the memory).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from smallr.data.batch import ROLE_ANSWER, Completion, Example
from smallr.data.drops import DropReport
from smallr.data.packing import PackingPlan, Sizes
from smallr.data.tables import read_table
from smallr.data.token_set import TokenSet, write
from smallr.data.tokenize import TokenizeOptions, tokenize
from smallr.models.loading import open_model

WORDS = (
    "how",
    "many",
    "apples",
    "does",
    "each",
    "of",
    "them",
    "have",
    "after",
    "they",
    "gave",
    "a",
    "third",
    "to",
    "her",
)
ROW = 2000  # characters


def own_memory() -> int:
    """Bytes of this process that no file holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


class Stage:
    """Times a stage and watches its memory.

    with Stage("read") as stage: …
    """

    def __init__(self, name: str) -> None:
        self.name, self.peak = name, 0
        self._ended = threading.Event()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, own_memory())

    def __enter__(self) -> Stage:
        """Starts both."""
        self._before, self._start = own_memory(), time.perf_counter()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Prints a line of the table."""
        seconds = time.perf_counter() - self._start
        self._ended.set()
        self._thread.join()
        print(f"| {self.name} | {seconds:.0f} | {self._before >> 20} | {self.peak >> 20} |", flush=True)


def write_rows(path: Path, size: int) -> int:
    """Writes about `size` bytes of rows; returns how many."""
    rng, count = np.random.default_rng(0), 0
    bodies = [[WORDS[i] for i in rng.integers(0, len(WORDS), ROW // 5)] for _ in range(1000)]
    with path.open("w") as file:
        while file.tell() < size:
            words = bodies[count % len(bodies)]
            half = len(words) // 2
            row = {"prompt": " ".join([str(count), *words[:half]]), "completion": " ".join(words[half:])}
            file.write(json.dumps(row) + "\n")
            count += 1
    return count


def examples(count: int, length: int) -> Iterator[Example]:
    """Yields examples of random tokens."""
    tokens = np.random.default_rng(0).integers(0, 49152, 1 << 20).astype(np.int32)
    half = length // 2
    roles = np.full(half, ROLE_ANSWER, np.int32)
    for row in range(count):
        start = row % (len(tokens) - length)
        completion = Completion(tokens[start + half : start + 2 * half], roles)
        yield Example(tokens[start : start + half], (completion,), {}, row)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="of the file")
    parser.add_argument("--tokenised", type=int, default=100, help="megabytes of it that are tokenised")
    parser.add_argument("--row-length", type=int, default=2048)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["SMALLR_CACHE"] = str(folder / "cache")
        measure(folder, args.megabytes * 10**6, args.tokenised * 10**6, args.row_length)


def measure(folder: Path, size: int, tokenised: int, row_length: int) -> None:
    """Runs the stages one after the other."""
    count = write_rows(folder / "rows.jsonl", size)
    print(f"{count} rows, {(folder / 'rows.jsonl').stat().st_size >> 20} MiB\n")
    print("| stage | s | MiB before | MiB at most |\n|---|---|---|---|")
    with Stage("read"):
        rows = read_table([str(folder / "rows.jsonl")], "rows")
    tokenizer = open_model("tiny-random").tokenizer()
    some = rows.select(range(min(len(rows), tokenised // ROW)))
    with Stage(f"tokenise {len(some)} rows"):
        tokenize(some, tokenizer, TokenizeOptions("sft", row_length, chat=True))
    report = DropReport("rows", row_length)
    with Stage(f"store {count} examples of 500 tokens"):
        write(folder / "store", examples(count, 500), report)
    with Stage("open and plan an epoch"):
        tokens = TokenSet(folder / "store")
        sizes = Sizes.from_lengths(tokens.prefix_lengths, tokens.completion_lengths, tokens.num_scored)
        PackingPlan(sizes, 32, row_length).num_steps(1)


if __name__ == "__main__":
    main()
