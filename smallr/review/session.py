"""Holds a review under way: what the page asks for, and what it is told."""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

from smallr.data.reviewed import EDITED
from smallr.review.decisions import Decision, Decisions, Outcome, outcome, standing
from smallr.review.folders import ReviewSet, open_set
from smallr.review.queues import ORDERS, STATUSES, Filter, is_open, queue
from smallr.review.rows import Panel, Row
from smallr.review.worddiff import SAME, own_words

MAX_PAGE = 200
_QUEUES = 16  # that are kept; a page makes a new one when its own is gone


class ChangedError(Exception):
    """Says that a row is not, or no longer, as it was shown."""


class Session:
    """Answers the page.

    Args:
      reviewed: the rows.
      decisions: of the reviewer.
      twice: whether a row needs two reviewers. What the first has said is shown when the second has decided.
      start: the queue that the page opens with.
    """

    def __init__(self, reviewed: ReviewSet, decisions: Decisions, *, twice: bool = False, start: Filter | None = None):
        self.reviewed, self.decisions, self._twice = reviewed, decisions, twice
        self._start = start or Filter()
        self._queues: OrderedDict[int, tuple[Filter, list[str]]] = OrderedDict()
        self._numbers = itertools.count(1)
        self._index()

    def _index(self) -> None:
        self._rows = {row.key: row for row in self.reviewed.rows}
        self._seen: dict[tuple[str, str], Decision] = {}  # by reviewer and key, as `_found` was worked out
        self._found: dict[str, tuple[Outcome, bool]] = {}

    def state(self) -> dict[str, Any]:
        """Returns what the page shows around the rows."""
        rows = self.reviewed.rows
        numbers = [
            name for name in ORDERS if name in ("place", "source") or any(getattr(r, name) is not None for r in rows)
        ]
        return {
            "path": str(self.reviewed.path),
            "kind": self.reviewed.kind.name,
            "asks": self.reviewed.kind.asks,
            "reviewer": self.decisions.reviewer,
            "twice": self._twice,
            "statuses": STATUSES,
            "orders": numbers,
            "sources": Counter(row.source for row in rows).most_common(100),
            "verdicts": Counter(row.verdict for row in rows if row.verdict).most_common(100),
            "start": vars(self._start),
            **self.counts(),
        }

    def counts(self) -> dict[str, Any]:
        """Returns how far the review is."""
        found = self._outcomes()
        closed = sum(not needed for _, needed in found.values())
        by = Counter(name for each, _ in found.values() for name in each.by)
        return {
            "rows": len(self._rows),
            "open": len(self._rows) - closed,
            "outdated": sum(bool(each.outdated) for each, _ in found.values()),
            "by_reviewer": {name: by[name] for name in self.decisions.all()},
            "undo": self.decisions.undoable,
        }

    def _outcomes(self) -> dict[str, tuple[Outcome, bool]]:
        """Returns what follows for each row with a decision, and whether it is still open; only news are worked out."""
        decided, reviewer = self.decisions.all(), self.decisions.reviewer
        for name, own in decided.items():
            for key, decision in own.items():
                if self._seen.get((name, key)) is not decision and key in self._rows:
                    self._seen[name, key] = decision
                    self._found.pop(key, None)
        for _, key in self._seen:
            if key not in self._found:
                row = self._rows[key]
                self._found[key] = outcome(row, decided), is_open(row, decided, reviewer, twice=self._twice)
        return self._found

    def make_queue(self, wanted: Filter) -> dict[str, Any]:
        """Makes a queue; its rows stay in it when they are decided on, so that positions do not move."""
        self._renew()
        found = queue(self.reviewed.rows, self.decisions.all(), self.decisions.reviewer, wanted, twice=self._twice)
        number = next(self._numbers)
        self._queues[number] = (wanted, [self.reviewed.rows[index].key for index in found])
        while len(self._queues) > _QUEUES:
            self._queues.popitem(last=False)
        return {"queue": number, "total": len(found), **self.counts()}

    def page(self, number: int, offset: int, limit: int) -> dict[str, Any]:
        """Returns a page of a queue: a line for each row.

        Raises:
          KeyError: there is no such queue any more.
        """
        _, keys = self._queues[number]
        decided = self.decisions.all()
        shown = [self._rows[key] for key in keys[offset : offset + min(limit, MAX_PAGE)] if key in self._rows]
        return {"offset": offset, "total": len(keys), "rows": [self._line(row, decided) for row in shown]}

    def row(self, number: int, position: int) -> dict[str, Any]:
        """Returns all that is shown of a row.

        Raises:
          KeyError, IndexError: there is no such queue or position any more.
        """
        row = self._rows[self._queues[number][1][position]]
        decided = self.decisions.all()
        current = standing(row, decided)
        own = current.get(self.decisions.reviewer)
        hidden = self._twice and own is None  # the second reviewer decides on his own
        others = {name: each for name, each in current.items() if name != self.decisions.reviewer and not hidden}
        return {
            **self._line(row, decided),
            "position": position,
            "digest": row.digest,
            "text": row.text,
            "panels": [_parts(panel) for panel in row.panels],
            "own": None if own is None else _told(own),
            "others": [{"reviewer": name, **_told(each)} for name, each in others.items()],
            "outdated": list(outcome(row, decided).outdated),
        }

    def decide(self, number: int, position: int, digest: str, decision: str, text: str) -> dict[str, Any]:
        """Stores a decision; tells who else has decided on the row.

        Raises:
          ChangedError: the row is not as it was shown.
          KeyError, IndexError: there is no such queue or position any more.
          UserError: the decision cannot be stored.
        """
        wanted, keys = self._queues[number]
        self._renew()
        row = self._rows.get(keys[position])
        if row is None or row.digest != digest:
            raise ChangedError(
                "this row has been written anew since it was shown; nothing was stored. Look at it again."
            )
        if decision == EDITED:
            self.reviewed.kind.edited(row.values, text)  # raises UserError for a text that the kind cannot use
        self.decisions.add(row, decision, text, wanted.seed if wanted.sample else None)
        return {"row": self.row(number, position), **self.counts()}

    def undo(self) -> dict[str, Any]:
        """Takes back the last decision of this session; `key` is None if there is none."""
        key = self.decisions.undo()
        places = [keys.index(key) for _, keys in reversed(self._queues.values()) if key in keys][:1]
        return {"key": key, "position": places[0] if places else None, **self.counts()}

    def _renew(self) -> None:
        """Reads the rows again where their files have changed."""
        if self.reviewed.has_changed():
            self.reviewed = open_set(self.reviewed.path)
            self._index()

    def _line(self, row: Row, decided: Mapping[str, Mapping[str, Decision]]) -> dict[str, Any]:
        found, own = outcome(row, decided), standing(row, decided).get(self.decisions.reviewer)
        hidden = self._twice and own is None and bool(found.by)
        return {
            "key": row.key,
            "split": row.split,
            "number": row.number,
            "title": row.title,
            "source": row.source,
            "verdict": row.verdict,
            "status": "decided by another" if hidden else found.status,
            "numbers": {name: value for name in ORDERS[1:4] if (value := getattr(row, name)) is not None},
        }


def _told(decision: Decision) -> dict[str, str]:
    return {"decision": decision.decision, "text": decision.text, "when": decision.when}


def _parts(panel: Panel) -> dict[str, Any]:
    """Returns a panel with its words marked: those that the compared text does not have."""
    mark = "new" if panel.is_new else "gone"
    parts = [(SAME, panel.text)] if panel.against is None else own_words(panel.text, panel.against)
    return {
        "title": panel.title,
        "place": panel.place,
        "parts": [["" if kind == SAME else mark, text] for kind, text in parts],
    }
