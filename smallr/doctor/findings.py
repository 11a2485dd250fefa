"""Collects what a check-up finds, for the screen and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Holds one line of the table.

    Attributes:
      section: attention, head, …
      name: what was measured.
      text: for people.
      numbers: the same for programs, in SI units.
      wrong: whether something disagrees that must agree, or has failed.
      failed: whether it could not be measured.
    """

    section: str
    name: str
    text: str
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    wrong: bool = False
    failed: bool = False


class Findings:
    """Holds all findings of a check-up, in order."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def add(self, section: str, name: str, text: str, *, wrong: bool = False, **numbers: Any) -> None:
        """Adds a finding."""
        self.all.append(Finding(section, name, text, numbers, wrong))

    def attempt(self, section: str, part: Callable[[], Any]) -> None:
        """Runs a part of the check-up; one that raises is a finding, so that the others are still found.

        It is wrong, unless it is just too large for the memory.
        """
        try:
            part()
        except Exception as error:
            text = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
            self.all.append(Finding(section, "", text, wrong=_OUT_OF_MEMORY not in text, failed=True))

    @property
    def wrong(self) -> list[Finding]:
        """Returns what disagrees."""
        return [finding for finding in self.all if finding.wrong]

    def get(self, section: str, name: str) -> Finding | None:
        """Returns a finding by its names; None if there is none."""
        return next((each for each in self.all if (each.section, each.name) == (section, name)), None)

    def to_json(self) -> str:
        """Returns all findings, and whether all agrees. A number that is not finite is null: JSON has no other."""
        content = {"agrees": not self.wrong, "findings": [dataclasses.asdict(finding) for finding in self.all]}
        return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"

    def show(self, console: Console) -> None:
        """Prints the table. What disagrees is marked."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("section", "what", "found"):
            table.add_column(name, no_wrap=name != "found", overflow="fold")
        before = ""
        for each in self.all:
            mark = "DISAGREES: " if each.wrong and not each.failed else ""
            section = "" if each.section == before else each.section
            table.add_row(section, each.name, f"{mark}{each.text}", style="red" if each.wrong else None)
            before = each.section
        console.print(table)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
