"""The outcome reward objective: its loss against plain numpy, on packed rows; test_reward.py of the planner trains with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flax import nnx

from smallr.core.errors import UserError
from smallr.data.batch import Completion, Example
from smallr.data.packing import RowShape
from smallr.data.pipeline import assemble
from smallr.training.objectives.outcome import OutcomeReward, values_at_tokens
from tests.tiny import decoder

OUTCOME = OutcomeReward()
SHAPE = RowShape(tokens=64, scored=40, examples=3, completions=3)


def labelled(seed: int, count: int) -> list[Example]:
    """Examples of one to three completions of several lengths, right or wrong."""
    rng = np.random.default_rng(seed)
    examples = []
    for row in range(count):
        completions = []
        for _ in range(int(rng.integers(1, 4))):
            length = int(rng.integers(1, 6))
            tokens = rng.integers(1, 60, length).astype(np.int32)
            completions.append(Completion(tokens, np.ones(length, np.int8), {"correct": float(rng.integers(2))}))
        examples.append(Example(rng.integers(1, 60, 4).astype(np.int32), tuple(completions), {}, row))
    return examples


def by_hand(values: np.ndarray, rows, examples) -> dict[str, float]:
    """Walks the positions of the rows one by one: the last of each completion counts."""
    loss = count = right = wins = pairs = 0
    for row, members in enumerate(rows):
        position = 0
        for index in members:
            found = []
            for completion in examples[index].completions:
                position += len(completion.tokens)
                found.append((float(values[row, position - 1]), completion.columns["correct"]))
            for value, label in found:
                loss += math.log1p(math.exp(-value if label else value))
                right += (value > 0) == bool(label)
                count += 1
            wins += sum(a > b for a, good in found for b, bad in found if good and not bad)
            pairs += sum(1 for _, good in found for _, bad in found if good and not bad)
    return {"loss": loss, "count": count, "accuracy": right / count, "pairwise_accuracy": wins / pairs}


def test_the_loss_is_that_of_the_last_value_of_each_completion():
    examples, rows = labelled(0, 6), [[0, 1], [2, 3, 4], [5]]
    batch = assemble(rows, examples, SHAPE, {})
    values = np.random.default_rng(1).normal(size=batch.role.shape).astype(np.float32)
    total, sums = OUTCOME(values, batch, None)
    expected = by_hand(values, rows, examples)
    assert float(total) == pytest.approx(expected["loss"], rel=1e-6)
    assert float(OUTCOME.denominator(batch)) == expected["count"]
    assert float(np.sum(sums["loss"])) == pytest.approx(float(total), rel=1e-6)
    summary = OUTCOME.summariser()({name: np.asarray(value).ravel() for name, value in sums.items()}, {})
    assert summary["accuracy"] == pytest.approx(expected["accuracy"])
    assert summary["pairwise_accuracy"] == pytest.approx(expected["pairwise_accuracy"])
    tied = OUTCOME(np.zeros_like(values), batch, None)[1]
    assert float(np.sum(tied["wins"])) == 0 < float(np.sum(tied["pairs"]))  # ties count as wrong


def test_what_is_missing_is_named():
    examples = labelled(0, 1)
    bare = [Example(e.prefix, tuple(Completion(c.tokens, c.roles) for c in e.completions), {}, 0) for e in examples]
    batch = assemble([[0]], bare, SHAPE, {})
    with pytest.raises(UserError, match=r"completion_columns=\('correct',\)"):
        OUTCOME(np.zeros(batch.role.shape, np.float32), batch, None)
    with pytest.raises(UserError, match=r"config\.heads\.values=1"):
        values_at_tokens(nnx.merge(*decoder()), batch)
