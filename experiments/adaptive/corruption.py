"""Puts slips into rationales: in a share of all steps one thing is replaced by another; answers stay as they are."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Sequence

from experiments.adaptive.small_tasks import Groups
from experiments.adaptive.teacher_rows import Row

_STEP = re.compile(r"[^\s].*?(?:[.!?](?=\s)|(?=\n)|$)", re.DOTALL)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclasses.dataclass(frozen=True)
class Slip:
    """Marks characters [start, end) of a rationale that may become one of `others`; without others it is a number."""

    start: int
    end: int
    others: tuple[str, ...] = ()


def steps(rationale: str) -> list[tuple[int, int]]:
    """Returns where the sentences and lines of a rationale begin and end."""
    return [match.span() for match in _STEP.finditer(rationale)]


def slips(rationale: str, items: Groups = ()) -> list[Slip]:
    """Returns the key thing of each step that has one: the last of the `items` in it, else its last number (its result)."""
    found = []
    for start, end in steps(rationale):
        candidates = [
            Slip(start + match.start(), start + match.end(), tuple(other for other in group if other != item))
            for group in items
            for item in group
            for match in re.finditer(rf"(?<!\w){re.escape(item)}(?!\w)", rationale[start:end], re.IGNORECASE)
            if len(group) > 1
        ]
        if candidates:  # of several that end at the same place the longest: "red ball" before "ball"
            found.append(max(candidates, key=lambda slip: (slip.end, -slip.start)))
        elif numbers := list(_NUMBER.finditer(rationale[start:end])):
            found.append(Slip(start + numbers[-1].start(), start + numbers[-1].end()))
    return found


def corrupt(rows: Sequence[Row], share: float, seed: int) -> list[Row]:
    """Returns the rows with a slip in exactly round(share * steps) of the steps that can have one.

    A step that follows a slip stays as it was: the slip is not carried on. For the same seed the slips of a smaller share are
    among those of a larger one.

    Args:
      rows: of teacher data; only their rationales change.
      share: of steps, from 0 to 1.
      seed: of the choice of steps and of what stands in their place.

    Raises:
      ValueError: a share that is none.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} of corrupted steps is not between 0 and 1")
    rng = random.Random(f"corruption {seed}")
    candidates = [(index, slip) for index, row in enumerate(rows) for slip in slips(row.rationale or "", row.items)]
    replaced = [_replacement(rows[index].rationale[slip.start : slip.end], slip, rng) for index, slip in candidates]
    order = list(range(len(candidates)))
    rng.shuffle(order)
    texts = [row.rationale for row in rows]
    # From the end of each text to its beginning, so that places stay where they are.
    for choice in sorted(order[: round(share * len(order))], reverse=True):
        index, slip = candidates[choice]
        texts[index] = texts[index][: slip.start] + replaced[choice] + texts[index][slip.end :]
    return [dataclasses.replace(row, rationale=text) for row, text in zip(rows, texts, strict=True)]


def _replacement(text: str, slip: Slip, rng: random.Random) -> str:
    """Draws another item, or a number near by, at least 0, with as many decimals."""
    if slip.others:
        return rng.choice(slip.others)
    decimals = len(text.partition(".")[2])
    value, away = float(text), rng.choice((1, 2, 3, 5, 10)) * rng.choice((-1, 1))
    return f"{value + (away if value + away >= 0 else -away):.{decimals}f}"
