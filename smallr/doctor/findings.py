"""Collects what a check-up finds, for the screen and as JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Finding:
    """Holds one line of the table.

    Attributes:
      section: attention, head, …
      name: what was measured.
      text: for people.
      numbers: the same for programs, in SI units.
      wrong: whether something disagrees that must agree.
    """

    section: str
    name: str
    text: str
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    wrong: bool = False


class Findings:
    """Holds all findings of a check-up, in order."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def add(self, section: str, name: str, text: str, *, wrong: bool = False, **numbers: Any) -> None:
        """Adds a finding."""
        self.all.append(Finding(section, name, text, numbers, wrong))

    @property
    def wrong(self) -> list[Finding]:
        """Returns what disagrees."""
        return [finding for finding in self.all if finding.wrong]

    def get(self, section: str, name: str) -> Finding | None:
        """Returns a finding by its names; None if there is none."""
        return next((each for each in self.all if (each.section, each.name) == (section, name)), None)

    def to_json(self) -> str:
        """Returns all findings, and whether all agrees."""
        content = {"agrees": not self.wrong, "findings": [dataclasses.asdict(finding) for finding in self.all]}
        return json.dumps(content, indent=1) + "\n"

    def show(self, console: Console) -> None:
        """Prints the table. What disagrees is marked."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("section", "what", "found"):
            table.add_column(name, no_wrap=name != "found", overflow="fold")
        before = ""
        for each in self.all:
            mark = "DISAGREES: " if each.wrong else ""
            section = "" if each.section == before else each.section
            table.add_row(section, each.name, f"{mark}{each.text}", style="red" if each.wrong else None)
            before = each.section
        console.print(table)
