"""Counts and names the rows that are left out of a data set, so that none is dropped in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

# Row numbers kept for each reason.
SHOWN = 5
# The share of the examples that an advised row length keeps.
ENOUGH = 0.97


@dataclasses.dataclass
class Tally:
    """Counts rows and keeps the first of them."""

    count: int = 0
    rows: list[int] = dataclasses.field(default_factory=list)

    def add(self, row: int) -> None:
        """Counts one row."""
        self.merge(Tally(1, [row]))

    def merge(self, other: Tally) -> None:
        """Counts the rows of another tally; rows may come in any order, the first by number are kept."""
        self.count += other.count
        self.rows = sorted(self.rows + other.rows)[:SHOWN]

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.rows) else ""
        return f"{self.count} ({'row' if self.count == 1 else 'rows'} {', '.join(map(str, self.rows))}{more})"


@dataclasses.dataclass
class DropReport:
    """Counts per reason over one source; rows are counted from 0 among those that were loaded.

    Messages give a row by its number in the whole split, that is in the file, where a user looks for it.

    Attributes:
      source: the spec the rows came from.
      max_length: limit on the tokens of an example (its prefix and all its completions).
      total: rows read.
      kept: examples made.
      dropped: reason -> rows left out.
      notes: reason -> rows kept, but not as they might be expected (e.g. no rationale: answer loss only).
      read_as: how the columns were read, and `unread`, those that were not.
      longest: tokens of the longest example, dropped ones included, and `longest_row`, the row it was made from.
      over: examples over the limit, by the smallest usual row length that would hold them.
      cut: how many of them are kept with a shorter prompt.
      numbers: of each row in the whole split; empty: a row's own number. They are not stored with the report.
    """

    source: str
    max_length: int
    total: int = 0
    kept: int = 0
    dropped: dict[str, Tally] = dataclasses.field(default_factory=dict)
    notes: dict[str, Tally] = dataclasses.field(default_factory=dict)
    read_as: str = ""
    unread: tuple[str, ...] = ()
    longest: int = 0
    longest_row: int = -1
    over: dict[int, int] = dataclasses.field(default_factory=dict)
    cut: int = 0
    numbers: Sequence[int] | Mapping[int, int] = dataclasses.field(default=(), repr=False, compare=False)

    @property
    def too_long(self) -> str:
        """The reason for which examples over the limit are left out."""
        return f"longer than {self.max_length} tokens"

    def number(self, row: int) -> int:
        """Returns the number of a row in the whole split."""
        return self.numbers[row] if self.numbers else row

    def place(self, row: int) -> str:
        """Names a row, for messages."""
        return f"{self.source}, row {self.number(row)}"

    def drop(self, row: int, reason: str) -> None:
        """Counts a row that is left out."""
        self.dropped.setdefault(reason, Tally()).add(row)

    def note(self, row: int, reason: str) -> None:
        """Counts a row that is kept in another form."""
        self.notes.setdefault(reason, Tally()).add(row)

    def measure(self, row: int, length: int) -> bool:
        """Notes the length of an example; whether it is within the limit."""
        self._longest(row, length)
        if length > self.max_length:
            enough = _usual_length(length)
            self.over[enough] = self.over.get(enough, 0) + 1
        return length <= self.max_length

    def advice(self) -> str:
        """Returns the row length that would keep almost all examples whole; empty if none is over the limit."""
        if not self.over:
            return ""
        held = whole = self.kept - self.cut
        # Texts that are far too long are dropped before they are measured: no advised length holds them.
        dropped = self.dropped.get(self.too_long, Tally()).count
        total = max(whole + self.cut + dropped, sum(self.over.values()))
        for length in sorted(self.over):
            held += self.over[length]
            if held >= ENOUGH * total:
                break
        return (
            f"config.batch.row_length={length} keeps {held / total:.0%} of the examples{' whole' if self.cut else ''}, "
            f"now {whole / total:.0%}"
        )

    def _longest(self, row: int, length: int) -> None:
        if length > self.longest:
            self.longest, self.longest_row = length, row

    def merge(self, other: DropReport) -> None:
        """Adds what was counted of rows further on in the same source."""
        self.total += other.total
        self.kept += other.kept
        for mine, others in ((self.dropped, other.dropped), (self.notes, other.notes)):
            for reason, tally in others.items():
                mine.setdefault(reason, Tally()).merge(tally)
        self._longest(other.longest_row, other.longest)
        for length, count in other.over.items():
            self.over[length] = self.over.get(length, 0) + count
        self.cut += other.cut

    def __str__(self) -> str:
        row = self.number(self.longest_row) if self.longest else -1
        longest = f"longest example {self.longest} tokens (row {row})" if self.longest else "no tokens"
        lines = [f"{self.source}: {self.total} rows, {self.kept} kept; {longest}, limit {self.max_length}"]
        lines += [f"  {line}" for line in self.about()]
        for what, tallies in (("dropped", self.dropped), ("kept", self.notes)):
            for reason, tally in _by_first_row(tallies):
                shown = Tally(tally.count, [self.number(row) for row in tally.rows])
                lines.append(f"  {what}, {reason}: {shown}")
        lines += [f"  {self.advice()}"] if self.over else []
        return "\n".join(lines)

    def about(self) -> list[str]:
        """Says how the rows were read, and which columns were not."""
        lines = [f"read as: {self.read_as}"] if self.read_as else []
        return lines + ([f"columns not read: {', '.join(self.unread)}"] if self.unread else [])

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        tallies = {key: dict(_by_first_row(getattr(self, key))) for key in ("dropped", "notes")}
        over = dict(sorted(self.over.items()))
        values = dataclasses.asdict(dataclasses.replace(self, **tallies, over=over, numbers=()))
        del values["numbers"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DropReport:
        """Makes a report again from what `to_dict` returned."""
        tallies = {key: {k: Tally(**v) for k, v in values[key].items()} for key in ("dropped", "notes")}
        over = {int(length): count for length, count in values.get("over", {}).items()}  # JSON has texts as keys
        unread = tuple(values.get("unread", ()))
        return cls(**{**values, **tallies, "over": over, "unread": unread})


def _usual_length(length: int) -> int:
    """Returns the smallest of 256, 384, 512, 768, 1024, 1536 … that is not below a length."""
    usual = 256
    while usual < length:
        usual = usual * 3 // 2 if usual & (usual - 1) == 0 else usual // 3 * 4
    return usual


def _by_first_row(tallies: dict[str, Tally]) -> list[tuple[str, Tally]]:
    """Sorts in an order that does not depend on how rows were grouped while they were tokenised."""
    return sorted(tallies.items(), key=lambda item: (item[1].rows[0], item[0]))
