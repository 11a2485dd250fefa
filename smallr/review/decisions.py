"""Keeps what reviewers decide, on disk before the page is told, and says what follows for a row from several of them.

Each reviewer has a journal of his own in the folder of the review, so that two can decide on one row at a time: both
decisions are kept. A decision carries the digest of what was shown; where the row has another one now, it no longer counts.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smallr.core.errors import UserError
from smallr.core.journal import Journal, read_entries
from smallr.core.locks import FolderLock
from smallr.data.reviewed import ACCEPTED, DISPUTED, EDITED, REJECTED, UNSURE
from smallr.review.rows import Row

DECISIONS = (ACCEPTED, EDITED, REJECTED, UNSURE)
OPEN, CHANGED = "open", "changed"
_FIELDS = ("decision", "text", "digest", "when", "audit")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,39}")


@dataclasses.dataclass(frozen=True)
class Decision:
    """Holds what one reviewer has decided on one row.

    Attributes:
      decision: one of `DECISIONS`; empty: it was undone.
      text: of an edit, else empty.
      digest: of the row as it was shown.
      when: UTC, in ISO's form.
      audit: seed of the audit sample that the row was shown in; None outside of one.
    """

    decision: str
    text: str
    digest: str
    when: str
    audit: int | None = None


Decided = Mapping[str, Mapping[str, Decision]]  # by reviewer and key of the row


def check_reviewer(name: str) -> None:
    """Refuses a name that cannot be that of a file."""
    if not _NAME.fullmatch(name):
        raise UserError(f"--reviewer={name}: give a name of up to 40 letters, digits and ._@-")


def read_all(home: Path) -> dict[str, dict[str, Decision]]:
    """Reads the decisions of all reviewers, who may be at work.

    Raises:
      FileError: a journal is damaged.
    """
    return {path.stem: _decisions(read_entries(path, _FIELDS)[0]) for path in sorted(home.glob("*.jsonl"))}


def _decisions(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Decision]:
    return {key: Decision(**{name: entry[name] for name in _FIELDS}) for key, entry in entries.items()}


class Decisions:
    """Stores the decisions of one reviewer, and reads those of the others.

    Args:
      home: folder of the review; made if it is missing.
      reviewer: whose decisions these are. He is locked while this is open: one process writes his journal.

    Raises:
      LockedError: he reviews this set in another process.
      UserError: the name cannot be used, or a journal is damaged.
    """

    def __init__(self, home: Path, reviewer: str):
        check_reviewer(reviewer)
        self.reviewer, self._home = reviewer, home
        self._lock = FolderLock(home, f"review, as {reviewer}", f".{reviewer}.lock")
        self._lock.acquire()
        try:
            self._journal = Journal(home / f"{reviewer}.jsonl", _FIELDS)
            self._own = _decisions(self._journal.entries())
            self._others: dict[str, tuple[tuple[int, int], dict[str, Decision]]] = {}
            self._undo: list[tuple[str, Decision | None]] = []
            self.all()
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Frees the reviewer."""
        self._lock.release()

    def all(self) -> dict[str, Mapping[str, Decision]]:
        """Returns everybody's decisions as they stand on disk now."""
        found: dict[str, Mapping[str, Decision]] = {}
        for path in sorted(self._home.glob("*.jsonl")):
            if path.stem != self.reviewer:
                status = path.stat()
                stamp = status.st_size, status.st_mtime_ns
                if self._others.get(path.stem, (None,))[0] != stamp:
                    self._others[path.stem] = stamp, _decisions(read_entries(path, _FIELDS)[0])
                found[path.stem] = self._others[path.stem][1]
        return {**found, self.reviewer: self._own}

    def add(self, row: Row, decision: str, text: str = "", audit: int | None = None) -> None:
        """Stores a decision; it is on disk when this returns. An edit that changes nothing is an acceptance.

        Raises:
          UserError: no such decision, an edit or an acceptance without a text, or the disk is full.
        """
        if decision not in DECISIONS:
            raise UserError(f"decision {decision!r} must be one of: {', '.join(DECISIONS)}")
        if decision == EDITED and not text.strip():
            raise UserError("an edit needs a text that is not empty; to leave the row out, reject it")
        if decision == ACCEPTED and not row.text.strip():
            raise UserError("this row has no text to accept: write one with an edit, or reject it")
        if decision == EDITED and text == row.text:
            decision = ACCEPTED
        before = self._own.get(row.key)
        self._write(row.key, Decision(decision, text if decision == EDITED else "", row.digest, _now(), audit))
        self._undo.append((row.key, before))

    def undo(self) -> str | None:
        """Takes back the last decision of this session; gives the key of its row, or None if there is none."""
        if not self._undo:
            return None
        key, before = self._undo[-1]
        self._write(key, before or Decision("", "", "", _now()))
        self._undo.pop()
        return key

    @property
    def undoable(self) -> int:
        """Returns how many decisions can be taken back."""
        return len(self._undo)

    def _write(self, key: str, decision: Decision) -> None:
        self._journal.add(key, dataclasses.asdict(decision))
        self._own[key] = decision


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Says what follows from all decisions on a row.

    Attributes:
      status: `OPEN`, one of `DECISIONS`, `DISPUTED` where one would keep the row and another not, or `CHANGED` where all
        decisions were on another content.
      by: reviewers whose decisions are on the row as it is, in the order of their decisions.
      when: the last of these decisions.
      text: of the last edit; empty: none.
      outdated: reviewers who decided on another content.
    """

    status: str = OPEN
    by: tuple[str, ...] = ()
    when: str = ""
    text: str = ""
    outdated: tuple[str, ...] = ()

    @property
    def is_kept(self) -> bool:
        """Returns whether the row may be trained on."""
        return self.status in (ACCEPTED, EDITED)


def standing(row: Row, decided: Decided) -> dict[str, Decision]:
    """Returns the decisions on a row as it is now, by reviewer, the oldest first."""
    found = {name: own[row.key] for name, own in decided.items() if row.key in own}
    current = {name: each for name, each in found.items() if each.decision and each.digest == row.digest}
    return dict(sorted(current.items(), key=lambda item: item[1].when))


def outcome(row: Row, decided: Decided) -> Outcome:
    """Returns what follows for a row. A reviewer who is unsure leaves the word to those who are not."""
    current = standing(row, decided)
    outdated = tuple(
        name
        for name, own in decided.items()
        if row.key in own and own[row.key].decision and own[row.key].digest != row.digest
    )
    if not current:
        return Outcome(CHANGED if outdated else OPEN, outdated=outdated)
    said = {each.decision for each in current.values()} - {UNSURE}
    if not said:
        status = UNSURE
    elif REJECTED in said:
        status = REJECTED if said == {REJECTED} else DISPUTED
    else:
        status = EDITED if EDITED in said else ACCEPTED
    edits = [each.text for each in current.values() if each.decision == EDITED]
    text = edits[-1] if edits and status == EDITED else ""
    last = max(each.when for each in current.values())
    return Outcome(status, tuple(current), last, text, outdated)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
