"""Moves numbers from lists of a row to the completions, and to the tokens, that they belong to.

A completion column is a list with a number for each completion, e.g. a score of each of five candidates. A token column
is a list with a number for each scored token of a completion, in order: rewards, a teacher's log-probs, weights.
A segment column becomes a token column: of a completion that is a list of segments it has a number for each, and one for
the end, see `segments`.
Preference rows have one such list a completion, in the columns `NAME_chosen` and `NAME_rejected`; rows with one
completion have it in the column `NAME`, and rows of the kind `completions` have a list of lists there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from smallr.data.batch import Completion, Example
from smallr.data.errors import DataError, shorten
from smallr.data.segments import is_segmented, segment_ends

# What the completions of a kind are called in names of columns; None: a column has a list of all completions.
NAMES: Mapping[str, tuple[str, ...] | None] = {
    "preference": ("chosen", "rejected"),
    "sft": ("completion",),
    "completions": None,
}
_FIELDS = "completion_columns, token_columns and segment_columns"


@dataclasses.dataclass(frozen=True)
class CompletionNumbers:
    """Holds numbers of one completion.

    Attributes:
      columns, token_columns: as those of `batch.Completion`.
      segment_columns: a number for each segment and one for the end.
      segment_ends: the character behind each segment.
    """

    columns: Mapping[str, float]
    token_columns: Mapping[str, Float[np.ndarray, "scored"]]
    segment_columns: Mapping[str, Float[np.ndarray, "segments_and_end"]] = dataclasses.field(default_factory=dict)
    segment_ends: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class CompletionColumns:
    """Names the columns that a set has of its completions, of their tokens and of their segments.

    Raises:
      DataError: columns that rows of the kind cannot have, or a name twice.
    """

    kind: str
    completion: tuple[str, ...] = ()
    token: tuple[str, ...] = ()
    segment: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self:
            return
        field = "completion_columns" if self.completion else "token_columns" if self.token else "segment_columns"
        if self.kind not in NAMES:
            raise DataError(
                f"{field}: rows of the kind {self.kind} have none; the kind must be one of: {', '.join(NAMES)}"
            )
        if (self.completion or self.segment) and self.kind != "completions":
            field = "completion_columns" if self.completion else "segment_columns"
            raise DataError(f"{field}: rows of the kind {self.kind} have none; use the kind completions")
        names = [*self.completion, *self.token, *self.segment]
        if twice := sorted({name for name in names if names.count(name) > 1} | ({"weight"} & set(names))):
            raise DataError(f"{_FIELDS}: {twice[0]!r} is named twice or is the pipeline's own")

    def __bool__(self) -> bool:
        """Returns whether there are any."""
        return bool(self.completion or self.token or self.segment)

    @property
    def sources(self) -> tuple[str, ...]:
        """Returns columns of the rows that the numbers are read from."""
        tokens = (source for name in self.token for source in self._sources(name))
        return (*self.completion, *tokens, *self.segment)

    def _sources(self, name: str) -> tuple[str, ...]:
        return (name,) if self.kind != "preference" else tuple(f"{name}_{end}" for end in NAMES[self.kind])

    def check(self, present: Sequence[str], source: str) -> None:
        """Raises DataError where the rows lack a column."""
        if missing := [name for name in self.sources if name not in present]:
            raise DataError(f"{source}: {_FIELDS} need the column {missing[0]!r}; present {', '.join(present)}")

    def read(self, row: Mapping[str, Any], count: int, where: str) -> tuple[CompletionNumbers, ...]:
        """Reads the numbers of each of a row's completions.

        Args:
          row: of the source.
          count: how many completions it has.
          where: source and row, for messages.

        Raises:
          DataError: a value that is no list of numbers, or not one for each completion.
        """
        if not self:
            return ()
        columns = {name: _numbers(row[name], f"{where}, column {name!r}") for name in self.completion}
        tokens = {name: self._token_lists(row, name, where) for name in self.token}
        for name, values in {**columns, **tokens}.items():
            if len(values) != count:
                raise DataError(
                    f"{where}, column {name!r}: {len(values)} values for {count} completions; give one for each"
                )
        segments = self._segment_lists(row, count, where)
        ends = [segment_ends(completion) for completion in row["completions"]] if self.segment else [()] * count
        return tuple(
            CompletionNumbers(
                {name: float(values[i]) for name, values in columns.items()},
                {name: values[i] for name, values in tokens.items()},
                {name: values[i] for name, values in segments.items()},
                ends[i],
            )
            for i in range(count)
        )

    def _segment_lists(
        self, row: Mapping[str, Any], count: int, where: str
    ) -> dict[str, list[Float[np.ndarray, "segments_and_end"]]]:
        """Reads the numbers of segments; each list has one number more than the completion has segments."""
        if not self.segment:
            return {}
        completions = row["completions"]
        for i, completion in enumerate(completions):
            if not is_segmented(completion):
                raise DataError(
                    f"{where}, column 'completions': segment_columns need completions that are lists of texts, found "
                    f"{shorten(completion)}"
                )
            if "" in completion:
                raise DataError(
                    f"{where}, column 'completions': segment {completion.index('')} of completion {i} is empty; leave it out"
                )
        found = {name: self._lists(row, name, where) for name in self.segment}
        for name, lists in found.items():
            if len(lists) != count:
                raise DataError(
                    f"{where}, column {name!r}: {len(lists)} values for {count} completions; give one for each"
                )
            for values, completion in zip(lists, completions, strict=True):
                if len(values) != len(completion) + 1:
                    raise DataError(
                        f"{where}, column {name!r}: {len(values)} numbers for {len(completion)} segments; give one for each "
                        "and one for the end"
                    )
        return found

    def _token_lists(self, row: Mapping[str, Any], name: str, where: str) -> list[Float[np.ndarray, "scored"]]:
        if NAMES[self.kind] is not None:
            return [_numbers(row[source], f"{where}, column {source!r}") for source in self._sources(name)]
        return self._lists(row, name, where)

    @staticmethod
    def _lists(row: Mapping[str, Any], name: str, where: str) -> list[Float[np.ndarray, "numbers"]]:
        lists = row[name]
        if isinstance(lists, str) or not isinstance(lists, Sequence):
            raise DataError(f"{where}, column {name!r}: expected a list for each completion, found {shorten(lists)}")
        return [_numbers(values, f"{where}, column {name!r}") for values in lists]

    def attach(self, example: Example, numbers: Sequence[CompletionNumbers], where: str) -> Example:
        """Gives each completion its numbers.

        Raises:
          DataError: a token column has another length than its completion has scored tokens.
        """
        if not numbers:
            return example
        completions = []
        for i, (completion, own) in enumerate(zip(example.completions, numbers, strict=True)):
            scored = len(completion.scored)
            for name, values in own.token_columns.items():
                if len(values) != scored:
                    source = self._sources(name)[i if NAMES[self.kind] else 0]
                    raise DataError(
                        f"{where}, column {source!r}: {len(values)} numbers for the {scored} scored tokens of completion "
                        f"{i}; the numbers must be of this tokenizer's tokens, the end-of-turn token included"
                    )
            tokens = {**completion.token_columns, **own.token_columns}
            completions.append(Completion(completion.tokens, completion.roles, own.columns, tokens))
        return dataclasses.replace(example, completions=tuple(completions))


def _numbers(value: Any, where: str) -> Float[np.ndarray, "n"]:
    if not isinstance(value, str) and isinstance(value, Sequence | np.ndarray):
        try:
            numbers = np.asarray(value, np.float32)
        except (TypeError, ValueError):
            numbers = None
        if numbers is not None and numbers.ndim == 1 and np.isfinite(numbers).all():
            return numbers
    raise DataError(f"{where}: expected a list of finite numbers, found {shorten(value)}")
