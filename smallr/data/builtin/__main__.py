"""Writes the built-in arithmetic data sets: `python -m smallr.data.builtin --out=DIR`."""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from smallr.data.builtin.dataset import TEST_QUESTIONS, TRAIN_QUESTIONS, build


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds, and shows what was built."""
    parser = argparse.ArgumentParser(
        prog="python -m smallr.data.builtin",
        description="Arithmetic word problems with step-by-step rationales: <out>/preference (pairs of three gaps), "
        "<out>/rationale and <out>/teacher (rationales that mostly do not fit), each with splits train and test, to be "
        "read with datasets.load_from_disk.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; data sets in it are replaced")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same rows")
    parser.add_argument("--train", type=int, default=TRAIN_QUESTIONS, metavar="N", help="questions to train on")
    parser.add_argument("--test", type=int, default=TEST_QUESTIONS, metavar="N", help="held-out questions")
    options = parser.parse_args(arguments)

    try:
        built = build(options.out, options.seed, options.train, options.test)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    table = Table("data set", "split", "rows", "of", "median words")
    for kind, splits in built.items():
        parts = ("chosen", "rejected") if kind == "preference" else ("rationale",)
        for split, rows in splits.items():
            counts = Counter(rows["gap"] if kind == "preference" else rows["template"])
            of = (
                ", ".join(f"{n} {name}" for name, n in counts.items())
                if kind == "preference"
                else f"{len(counts)} templates"
            )
            words = " / ".join(f"{statistics.median(len(text.split()) for text in rows[part]):.0f}" for part in parts)
            table.add_row(kind, split, str(len(rows)), of, f"{words} ({' / '.join(parts)})")
    console = Console()
    console.print(table)
    console.print(f"written to {options.out}", highlight=False)


if __name__ == "__main__":
    main()
