"""Makes preference pairs of the model solutions that OpenAI published with GSM8K: one right, one wrong.

    python -m experiments.gsm8k_pairs --solutions=example_model_solutions.jsonl.gz --out=FOLDER

The file is grade_school_math/data/example_model_solutions.jsonl of github.com/openai/grade-school-math (Cobbe et al.,
arXiv 2110.14168). Its problems are GSM8K's test set, so do not judge a model that is trained on them by that set. 731
problems have both right and wrong solutions; every fifth of them goes to the split `test`, so no problem is in both.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets
from absl import app, flags

SYSTEMS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def pairs(rows: Iterator[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields one pair for each problem that has both; which of the right and of the wrong solutions is taken rotates."""
    for i, row in enumerate(rows):
        solutions = {True: [], False: []}
        for system in SYSTEMS:
            if row[system]["solution"].strip():
                solutions[bool(row[system]["is_correct"])].append(clean(row[system]["solution"]))
        if solutions[True] and solutions[False]:
            chosen, rejected = (solutions[label][i % len(solutions[label])] for label in (True, False))
            yield {"prompt": row["question"], "chosen": chosen, "rejected": rejected, "gap": "large", "problem": i}


def clean(solution: str) -> str:
    """Removes the calculator's annotations <<2*3=6>>."""
    return re.sub(r"<<[^>]*>>", "", solution).strip()


def main(argv: list[str]) -> None:
    """Writes the two splits for `load_from_disk`."""
    del argv
    with gzip.open(SOLUTIONS.value, "rt") as lines:
        rows = list(pairs(json.loads(line) for line in lines))
    splits = {"train": [row for i, row in enumerate(rows) if i % 5], "test": rows[::5]}
    built = datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in splits.items()})
    built.save_to_disk(Path(OUT.value))
    print({name: len(part) for name, part in built.items()})


if __name__ == "__main__":
    SOLUTIONS = flags.DEFINE_string("solutions", None, "example_model_solutions.jsonl.gz", required=True)
    OUT = flags.DEFINE_string("out", None, "Folder to write", required=True)
    app.run(main)
