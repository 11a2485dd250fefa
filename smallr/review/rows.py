"""Defines what a person decides on: a row with one text of a machine, and everything that is shown beside it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

TOP, SIDE, MORE = "top", "side", "more"
MAX_TITLE = 120


@dataclasses.dataclass(frozen=True)
class Panel:
    """Shows one text under a title.

    Attributes:
      title, text: what is shown.
      place: above, side by side with others, or below.
      against: a text whose words are compared with it; None: none are marked.
      is_new: whether it is the later one of the two, so that words of its own count as added and not as removed.
    """

    title: str
    text: str
    place: str = TOP
    against: str | None = None
    is_new: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """Holds a row as it is reviewed.

    Attributes:
      key: tells it from the others of its set, and stays the same when the machine writes something else.
      digest: of everything that is shown; another one means that an earlier decision was about something else.
      split, number: where it stands.
      title: one line, for lists.
      text: what the machine wrote, and what an edit replaces.
      panels: what is shown.
      values: the row itself.
      source: where it comes from, for filters and figures.
      verdict: of an agent or a rule, in its own words; empty: nobody was asked.
      approved: whether that verdict is in favour; None: it is neither.
      confidence, disagreement, gap: numbers to order by; None where the machine left none. docs/review.md has their
        meanings by kind.
    """

    key: str
    digest: str
    split: str
    number: int
    title: str
    text: str
    panels: tuple[Panel, ...]
    values: Mapping[str, Any]
    source: str = ""
    verdict: str = ""
    approved: bool | None = None
    confidence: float | None = None
    disagreement: float | None = None
    gap: float | None = None


@dataclasses.dataclass(frozen=True)
class Kind:
    """Describes rows of one kind.

    Attributes:
      name: for people.
      asks: what an acceptance says yes to.
      edited: makes the values of a row whose text a person has replaced.
      accepted: makes the values of a row that a person has accepted; by default they are left as they are.
    """

    name: str
    asks: str
    edited: Callable[[Mapping[str, Any], str], dict[str, Any]]
    accepted: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


class RowMaker:
    """Makes rows and gives each a key: rows of equal identity are numbered in their order."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def __call__(
        self,
        split: str,
        number: int,
        identity: str,
        values: Mapping[str, Any],
        *,
        title: str,
        text: str,
        panels: Iterable[Panel],
        **numbers: Any,
    ) -> Row:
        """Makes a row.

        Args:
          split: where it stands.
          number: of the row in its split.
          identity: what tells it from others, whatever the machine writes: an id or a question.
          values: the row itself.
          title: of any length.
          text: what the machine wrote.
          panels: what is shown.
          **numbers: the other fields of `Row`. A number that is not finite orders nothing, and counts as none.
        """
        numbers |= {name: _finite(numbers.get(name)) for name in ("confidence", "disagreement", "gap")}
        shown = tuple(map(_displayable, panels))
        title, text = _text(title), _text(text)
        key = _digest([split, identity])
        self._seen[key] += 1
        if self._seen[key] > 1:
            key = f"{key}-{self._seen[key]}"
        digest = _digest([text, [[panel.title, panel.text] for panel in shown]])
        one_line = " ".join(title.split())
        short = one_line if len(one_line) <= MAX_TITLE else one_line[: MAX_TITLE - 1] + "…"
        return Row(key, digest, split, number, short, text, shown, values, **numbers)


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _displayable(panel: Panel) -> Panel:
    against = None if panel.against is None else _text(panel.against)
    return dataclasses.replace(panel, title=_text(panel.title), text=_text(panel.text), against=against)


def _text(text: str) -> str:
    """Returns a text that a page can show: JSON lines may hold halves of surrogate pairs."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def has_columns(values: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Returns whether a row has all of some columns."""
    return all(name in values for name in names)


def as_shown(value: Any) -> str:
    """Returns a value as text: chats as turns, other structures as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) and "content" in turn for turn in value):
        return "\n\n".join(f"{turn.get('role', '')}: {as_shown(turn['content'])}" for turn in value)
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def last_turn(value: Any) -> str:
    """Returns what an edit of a text replaces: of a chat the content of its last turn."""
    return as_shown(value[-1].get("content")) if _is_chat(value) else as_shown(value)


def with_last_turn(value: Any, text: str) -> Any:
    """Returns a text or chat with another text in the place of `last_turn`."""
    return [*value[:-1], {**value[-1], "content": text}] if _is_chat(value) else text


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[-1], Mapping)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
