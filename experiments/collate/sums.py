"""Makes the smallest task of the ablation: sums of two numbers, digit by digit, that a student of 0.1 M parameters learns.

    Add 23 and 41.   3 + 1 = 4. 2 + 4 = 6.   64

No digit is carried. Held-out sums occur in no training set; their single digits do.
"""

from __future__ import annotations

import random
from pathlib import Path

from smallr.models.scratch import Size, train_tokenizer, write_scratch

_DIGITS = range(1, 6)
Row = dict[str, str]


def draw_sums(seed: str, count: int, forbidden: list[Row]) -> list[Row]:
    """Draws different sums, none of them forbidden."""
    numbers = [10 * tens + ones for tens in _DIGITS for ones in _DIGITS]
    rows = [_row(a, b) for a in numbers for b in numbers if a % 10 + b % 10 < 10 and a // 10 + b // 10 < 10]
    taken = {row["question"] for row in forbidden}
    left = [row for row in rows if row["question"] not in taken]
    return random.Random(f"sums {seed}").sample(left, count)


def write_student(folder: Path, marks: list[str], layers: int, width: int) -> str:
    """Returns the folder of a model of random weights whose tokenizer knows the rows and marks; made if it is not there."""
    if not (folder / "config.json").exists():
        texts = [text for row in draw_sums("tokenizer", 200, []) for text in row.values()]
        write_scratch(folder, train_tokenizer(texts + marks * 50, 320), Size("llama", layers, width, 4, 256), 0)
    return str(folder.absolute())


def _row(a: int, b: int) -> Row:
    tens, ones = a // 10 + b // 10, a % 10 + b % 10
    rationale = f"{a % 10} + {b % 10} = {ones}. {a // 10} + {b // 10} = {tens}."
    return {"question": f"Add {a} and {b}.", "rationale": rationale, "answer": str(a + b)}
