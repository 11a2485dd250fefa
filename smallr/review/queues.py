"""Chooses which rows a reviewer is shown, and in which order."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

from smallr.core.errors import UserError
from smallr.data.reviewed import ACCEPTED, DISPUTED, EDITED, REJECTED, UNSURE
from smallr.review.decisions import CHANGED, OPEN, Decided, Outcome, outcome, standing
from smallr.review.rows import Row

ALL, MINE = "all", "mine"
STATUSES = (OPEN, MINE, ACCEPTED, EDITED, REJECTED, UNSURE, DISPUTED, CHANGED, ALL)
ORDERS = ("place", "confidence", "disagreement", "gap", "source")


@dataclasses.dataclass(frozen=True)
class Filter:
    """Describes a queue.

    Attributes:
      status: one of `STATUSES`; open: what still needs this reviewer.
      source, verdict: of the rows; empty: any.
      order: one of `ORDERS`: lowest confidence, highest disagreement or smallest gap first; rows without the number come
        last. An audit sample has the order in which it was drawn.
      sample: rows of the audit sample; 0: no sample.
      seed: of the sample.
    """

    status: str = OPEN
    source: str = ""
    verdict: str = ""
    order: str = "place"
    sample: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("status", STATUSES), ("order", ORDERS)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} {getattr(self, name)!r} must be one of: {', '.join(choices)}")
        for name in ("sample", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UserError(f"{name} {value!r} must be a whole number of at least 0")
        if not (isinstance(self.source, str) and isinstance(self.verdict, str)):
            raise UserError("source and verdict must be texts")


def audit_order(rows: Sequence[Row], seed: int) -> list[int]:
    """Returns the rows' indices in the order in which an audit draws them.

    It is that of a hash of seed and key: rows that are added or written anew do not change the order of the others, and the
    first n are a simple random sample whatever n is.
    """
    drawn = [hashlib.sha256(f"{seed} {row.key}".encode()).digest() for row in rows]
    return sorted(range(len(rows)), key=drawn.__getitem__)


def queue(rows: Sequence[Row], decided: Decided, reviewer: str, wanted: Filter, *, twice: bool) -> list[int]:
    """Returns the indices of the rows that a reviewer is shown, in their order.

    Args:
      rows: of the set.
      decided: everybody's decisions.
      reviewer: who asks.
      wanted: what he asks for.
      twice: whether a row needs two reviewers.
    """
    order = audit_order(rows, wanted.seed)[: wanted.sample] if wanted.sample else _ordered(rows, wanted.order)
    return [
        index
        for index in order
        if wanted.source in ("", rows[index].source)
        and wanted.verdict in ("", rows[index].verdict)
        and _has_status(rows[index], decided, reviewer, wanted.status, twice)
    ]


def is_open(row: Row, decided: Decided, reviewer: str, *, twice: bool) -> bool:
    """Returns whether a row still needs this reviewer; one who is unsure leaves it to others."""
    current = standing(row, decided)
    sure = sum(each.decision != UNSURE for each in current.values())
    return reviewer not in current and sure < (2 if twice else 1)


def _has_status(row: Row, decided: Decided, reviewer: str, status: str, twice: bool) -> bool:
    if status == ALL:
        return True
    if status == OPEN:
        return is_open(row, decided, reviewer, twice=twice)
    found: Outcome = outcome(row, decided)
    if status == MINE:
        return reviewer in found.by
    if twice and found.by and reviewer not in found.by and status != CHANGED:
        return False  # what another has said is not told before one has decided
    return bool(found.outdated) if status == CHANGED else found.status == status


def _ordered(rows: Sequence[Row], order: str) -> list[int]:
    if order == "place":
        return list(range(len(rows)))
    if order == "source":
        return sorted(range(len(rows)), key=lambda index: rows[index].source)
    sign = -1 if order == "disagreement" else 1

    def rank(index: int) -> float:
        value = getattr(rows[index], order)
        return math.inf if value is None else sign * value

    return sorted(range(len(rows)), key=rank)
