"""Rows that the tests of decomposition share, and the released data where it is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smallr.methods.decomposition.rows import Decomposition

RELEASED = Path(__file__).parents[4] / "shared" / "data" / "decomposition" / "gsm8k_ai_subq"
needs_released = pytest.mark.skipif(not RELEASED.is_dir(), reason="the released data is not in shared/data")

QUESTION = "Tom has 12 apples and buys 7 more. How many apples does he have?"
ROW = {
    "question": QUESTION,
    "answers": ["How many apples does Tom buy?", "How many apples does he have?"],
    "rewards": {"answer_correctness": 1.0, "usefulness": [1 / 3, 1.0]},
    "true_answer": 19.0,
}


def changed(**fields):
    """The row with other fields; `usefulness` and `answer_correctness` are those of its rewards."""
    rewards = dict(ROW["rewards"])
    rewards |= {name: fields.pop(name) for name in tuple(fields) if name in rewards}
    return {**ROW, "rewards": rewards, **fields}


def decomposition(sub_questions, correctness=1.0, usefulness=(), question=QUESTION):
    """A decomposition of one problem."""
    return Decomposition(question, tuple(sub_questions), correctness, tuple(usefulness), 19.0)


def write_jsonl(path, rows):
    """Writes rows, a line each."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
