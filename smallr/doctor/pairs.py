"""Makes preference pairs of realistic lengths, and the rows and the needed work of a step on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from smallr.data.batch import ROLE_ANSWER, Batch, Completion, Example
from smallr.data.packing import PackingPlan, Sizes
from smallr.data.pipeline import assemble
from smallr.models.config import DecoderConfig

# Median tokens of prompt and completions, as in the studies of docs/performance.md.
LENGTHS = {"short prompts": (53, 79), "long prompts": (350, 79)}
SPREAD = 0.4  # of the logarithm of a length
COLUMNS = {"beta": 0.1, "gap": 0.0, "ref_chosen": -9.0, "ref_rejected": -9.0}


def draw_lengths(kind: str, count: int, longest: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """Returns lengths of (prompt, chosen, rejected), log-normal; a pair fits in a row of `longest` tokens unshared."""
    rng = np.random.default_rng(seed)
    prompt, completion = LENGTHS[kind]
    found: list[tuple[int, int, int]] = []
    scale = min(1.0, longest / (2.5 * (prompt + completion)))
    while len(found) < count:
        drawn = np.exp(rng.normal(0, SPREAD, 3)) * (prompt, completion, completion) * scale
        p, c, r = (max(2, int(x)) for x in drawn)
        if 2 * p + c + r <= longest:
            found.append((p, c, r))
    return found


@dataclasses.dataclass(frozen=True)
class Step:
    """Holds a step's batch, and how many pairs and tokens it has.

    Attributes:
      batch: its rows.
      pairs: which of the given ones it holds.
    """

    batch: Batch
    pairs: tuple[int, ...]


def make_step_rows(
    lengths: Sequence[tuple[int, int, int]], rows: int, row_length: int, vocabulary: int, *, shared: bool
) -> Step:
    """Packs pairs into rows, prompts once; or, not `shared`, one pair a row with its prompt twice."""
    rng = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return rng.integers(3, vocabulary, count).astype(np.int32)

    def completion(count: int) -> Completion:
        return Completion(tokens(count), np.full(count, ROLE_ANSWER, np.int32))

    examples = [Example(tokens(p), (completion(c), completion(r)), {}, i) for i, (p, c, r) in enumerate(lengths)]
    plan = PackingPlan(Sizes.of(examples), rows, row_length, shuffle=False, packing=shared, share_prompt=shared)
    columns = {name: np.full(len(examples), value, np.float32) for name, value in COLUMNS.items()}
    taken = plan.step(0)
    batch = assemble(taken, examples, plan.shape, columns, share_prompt=shared)
    return Step(batch, tuple(i for row in taken for i in row))


def needed_flops(model: DecoderConfig, lengths: Sequence[tuple[int, int, int]]) -> float:
    """Returns the FLOPs of a step's forward and backward pass that no layout can save.

    Products of real tokens with each prompt once, visible pairs of the causal rule, scored tokens at the head; nothing
    twice, no padding, no reference.
    """
    tokens = sum(map(sum, lengths))
    visible = sum(p * (p + 1) / 2 + sum(c * p + c * (c + 1) / 2 for c in rest) for p, *rest in lengths)
    scored = sum(c + r for _, c, r in lengths)
    return 3 * model.forward_flops(tokens, visible, scored)
