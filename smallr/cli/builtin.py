"""Write the built-in arithmetic data sets: smallr builtin --out=FOLDER

Word problems with step-by-step rationales: FOLDER/preference (pairs of three gaps), FOLDER/rationale and FOLDER/teacher
(rationales that mostly do not fit), each with the splits train and test, to be read with datasets.load_from_disk.
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections import Counter
from pathlib import Path

from smallr.cli.parsing import Parser
from smallr.core.errors import UserError
from smallr.core.locks import output_lock


def flags(parser: Parser) -> None:
    """Names the flags."""
    parser.flag("out", None, "folder to write; data sets in it are replaced", required=True)
    parser.flag("seed", 0, "the same seed gives the same rows")
    parser.flag("train", None, "questions to train on; default: as many as a run's built-in data has", type=int)
    parser.flag("test", None, "held-out questions; likewise", type=int)


def run(options: Namespace) -> None:
    """Builds the data sets and shows them."""
    from rich.console import Console
    from rich.table import Table

    from smallr.data.builtin.dataset import TEST_QUESTIONS, TRAIN_QUESTIONS, build

    train = TRAIN_QUESTIONS if options.train is None else options.train
    test = TEST_QUESTIONS if options.test is None else options.test
    try:
        with output_lock(Path(options.out)):
            built = build(options.out, options.seed, train, test)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    table = Table("data set", "split", "rows", "of", "median words")
    for kind, splits in built.items():
        parts = ("chosen", "rejected") if kind == "preference" else ("rationale",)
        for split, rows in splits.items():
            counts = Counter(rows["gap"] if kind == "preference" else rows["template"])
            gaps = ", ".join(f"{n} {name}" for name, n in counts.items())
            of = gaps if kind == "preference" else f"{len(counts)} templates"
            words = " / ".join(f"{statistics.median(len(text.split()) for text in rows[part]):.0f}" for part in parts)
            table.add_row(kind, split, str(len(rows)), of, f"{words} ({' / '.join(parts)})")
    console = Console()
    console.print(table)
    console.print(f"written to {options.out}", highlight=False)
