"""Measures how hard questions are, and puts them into bins.

nll     nats a token of the gold rationale, or of the gold answer where there is none, under a base model
steps   sentences and lines of the gold rationale
level   the benchmark's own, as in MATH-500
score   a number that a critic has given, in a column of the rows
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from smallr.core.errors import UserError
from smallr.data.errors import nearest
from smallr.evals.benchmarks.base import Question
from smallr.evals.questions import Item

MEASURES = ("nll", "steps", "level", "score")
LEVELS = ("level", "difficulty")  # columns in which benchmarks have their own
_WORDS = ("easy", "medium", "hard")  # in this order
_RATIONALES = ("rationale", "solution", "explanation")  # columns of a gold rationale
_STATEMENT = re.compile(r"^\W*(?:####|(?:so |thus )?the (?:final )?answer is\b|answer:)", re.IGNORECASE)
_STEP = re.compile(r"(?<=[.!?])\s+|\n+")

Value = float | str


class TokenScorer(Protocol):
    """Scores given texts and tells how many tokens they have."""

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Returns for each (context, continuation) the sum of log-probs of the continuation; NaN if it does not fit."""
        ...

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Returns the tokens of both."""
        ...


def gold_rationale(item: Item) -> str:
    """Returns the rationale that the row brings; empty if it has none."""
    if isinstance(item.task, Question) and item.task.solution:
        return item.task.solution
    found = next((item.row[name] for name in _RATIONALES if isinstance(item.row.get(name), str)), "")
    return found.strip()


def steps(rationale: str) -> int:
    """Counts sentences and lines, without a last one that only states the answer."""
    parts = [part for part in _STEP.split(rationale.strip()) if re.search(r"\w", part)]
    return len([part for part in parts if not _STATEMENT.match(part)])


def available(items: Sequence[Item], column: str) -> list[str]:
    """Returns the measures that these questions have; the NLL of a gold answer can always be taken."""
    rows = [item.row for item in items]
    found = {
        "nll": True,
        "steps": any(map(gold_rationale, items)),
        "level": any(row.get(name) not in (None, "") for row in rows for name in LEVELS),
        "score": any(_is_number(row.get(column)) for row in rows),
    }
    return [name for name in MEASURES if found[name]]


def check(measure: str, items: Sequence[Item], benchmark: str, column: str, base: str) -> None:
    """Refuses a measure that the questions do not have.

    Raises:
      UserError: names those that they have.
    """
    known = available(items, column)
    listed = ", ".join(f"{name} (with config.difficulty.base)" if name == "nll" else name for name in known)
    if measure not in MEASURES:
        raise UserError(
            f"config.difficulty.measure = {measure!r} must be one of: {', '.join(MEASURES)}{nearest(measure, MEASURES)}; "
            f"the rows of {benchmark} have {listed}"
        )
    if measure not in known:
        lacks = {"steps": "no gold rationale", "level": "no level", "score": f"no number in a column {column!r}"}
        raise UserError(
            f"config.difficulty.measure = {measure!r}: the rows of {benchmark} have {lacks[measure]}; they have {listed}"
        )
    if measure == "nll" and not base:
        raise UserError("config.difficulty.base is empty: name the model under which the gold answers are scored")


def measured(measure: str, items: Sequence[Item], column: str, scorer: TokenScorer | None = None) -> dict[str, Value]:
    """Returns how hard each question is, by its id; questions that the measure says nothing about are left out."""
    if measure == "nll":
        assert scorer is not None
        return _nll(items, scorer)
    found: dict[str, Value] = {}
    for item in items:
        value: Value | None = None
        if measure == "steps":
            value = steps(rationale) if (rationale := gold_rationale(item)) else None
        elif measure == "level":
            value = level(next((item.row[name] for name in LEVELS if item.row.get(name) not in (None, "")), None))
        elif _is_number(item.row.get(column)):
            value = float(item.row[column])
        if value is not None:
            found[item.id] = value
    return found


def _nll(items: Sequence[Item], scorer: TokenScorer) -> dict[str, Value]:
    pairs = [_scored(item) for item in items]
    sums = [value for value, _ in scorer.loglikelihood(pairs)]
    lengths = [len(scorer.encode_pair(*pair)[1]) for pair in pairs]
    return {
        item.id: -value / max(length, 1)
        for item, value, length in zip(items, sums, lengths, strict=True)
        if not math.isnan(value)
    }


def _scored(item: Item) -> tuple[str, str]:
    """Returns the question and what is scored behind it: the gold rationale, else the gold answer or option."""
    if not isinstance(item.task, Question):
        return item.task.contexts[item.task.gold], item.task.continuations[item.task.gold]
    return item.task.prompt, f"\n{gold_rationale(item) or item.task.gold}"


def level(value: Any) -> Value | None:
    """Returns a level as a number where it has one ("Level 3" is 3), else its word; None for none."""
    if value is None or _is_number(value):
        return None if value is None else float(value)
    number = re.search(r"\d+(?:\.\d+)?", str(value))
    return float(number[0]) if number else str(value).strip().lower()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclasses.dataclass(frozen=True)
class Bins:
    """Holds bins from the easiest to the hardest.

    Attributes:
      names: as tables show them.
      of: id of a question -> index of its bin.
    """

    names: tuple[str, ...]
    of: Mapping[str, int]

    def members(self, index: int) -> list[str]:
        """Returns the ids of the questions in a bin."""
        return [name for name, each in self.of.items() if each == index]


def make_bins(values: Mapping[str, Value], count: int, edges: Sequence[float] = (), *, each: bool = False) -> Bins:
    """Puts questions into bins; equal values are never apart.

    Args:
      values: by question.
      count: of bins with about as many questions each, where no edges are given.
      edges: a bin from each to the next, which belongs to the next but for the last.
      each: a bin for each value, as for levels.

    Raises:
      UserError: edges that do not rise, or a value beyond them.
    """
    if not values:
        return Bins((), {})
    if edges:
        return _between(values, edges)
    if any(isinstance(value, str) for value in values.values()) or each or len(set(values.values())) <= count:
        return _apart(values)
    numbers = np.array(list(values.values()), float)
    cuts = np.unique(np.quantile(numbers, np.linspace(0, 1, count + 1)[1:-1], method="higher"))
    index = np.searchsorted(cuts, numbers, side="right")
    kept = sorted(set(index.tolist()))
    spans = [(numbers[index == each].min(), numbers[index == each].max()) for each in kept]
    names = tuple(f"{low:.4g}" if low == high else f"{low:.4g} … {high:.4g}" for low, high in spans)
    return Bins(names, {name: kept.index(place) for name, place in zip(values, index.tolist(), strict=True)})


def _apart(values: Mapping[str, Value]) -> Bins:
    def order(value: Value) -> tuple:
        if isinstance(value, str):
            return (1, _WORDS.index(value) if value in _WORDS else len(_WORDS), value)
        return (0, value, "")

    distinct = sorted(set(values.values()), key=order)
    names = tuple(value if isinstance(value, str) else f"{value:.4g}" for value in distinct)
    return Bins(names, {name: distinct.index(value) for name, value in values.items()})


def _between(values: Mapping[str, Value], edges: Sequence[float]) -> Bins:
    edges = [float(edge) for edge in edges]
    if len(edges) < 2 or any(low >= high for low, high in itertools.pairwise(edges)):
        raise UserError(f"config.difficulty.edges = {tuple(edges)} must be two numbers or more that rise")
    found = {}
    for name, value in values.items():
        if isinstance(value, str) or not edges[0] <= value <= edges[-1]:
            raise UserError(
                f"config.difficulty.edges: question {name!r} has {value!r}, beyond {edges[0]:g} to {edges[-1]:g}"
            )
        found[name] = min(int(np.searchsorted(edges, value, side="right")) - 1, len(edges) - 2)
    names = tuple(
        f"{low:g} ≤ … {'≤' if high == edges[-1] else '<'} {high:g}" for low, high in itertools.pairwise(edges)
    )
    return Bins(names, found)
