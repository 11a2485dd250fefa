"""Counts what a run has done, for its progress table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from smallr.methods.crv.names import LABELS


class RowCounts:
    """Counts labels, verdicts, retries and reasons of finished rows."""

    def __init__(self) -> None:
        self._labels: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def count(self, row: Mapping[str, Any]) -> None:
        """Counts a finished row."""
        self._labels[row["label"]] += row["label"] != ""
        self._counts["verified" if not row["reason"] else "failed"] += 1
        self._counts["rewritten"] += row["rewritten"]
        self._counts["retries"] += max(len(row["attempts"]) - 1, 0)
        self._counts["incorrect"] += len(row["incorrect"])
        if row["reason"]:
            self._reasons[row["reason"]] += 1

    def lines(self) -> list[tuple[str, str]]:
        """Yields names and texts, as `Progress` shows them."""
        counts = self._counts
        return [
            ("labels", ", ".join(f"{self._labels[label]} {label}" for label in LABELS)),
            ("rewritten", f"{counts['rewritten']} ({counts['retries']} retries)"),
            ("verified", f"{counts['verified']}"),
            ("failed", f"{counts['failed']}"),
            *(("", f"{count} {reason}") for reason, count in self._reasons.most_common()),
            ("incorrect rationales", f"{counts['incorrect']}"),
        ]
