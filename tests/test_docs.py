"""The documents: lines that can be read, and links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import generate

ROOT = Path(__file__).parents[1]
GENERATED = {ROOT / "docs" / path for path in generate.PAGES}  # of the site
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
LONGEST = 100  # characters of a line of prose
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


def prose(text: str) -> list[tuple[int, str]]:
    """Numbered lines outside code and tables."""
    lines, fenced = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    ") and not line.lstrip().startswith("|"):
            lines.append((number, line))
    return lines


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_prose_are_short(page):
    long = [
        number
        for number, line in prose(page.read_text())
        # A link or a command in a line of its own cannot be broken.
        if len(line) > LONGEST
        and line[0] != "#"
        and len(line.split()) > 1
        and not re.fullmatch(r"\S+ \S+", line.strip())
    ]
    assert not long, f"{page.relative_to(ROOT)}: lines {long} are longer than {LONGEST} characters"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = [match[1] for match in LINK.finditer(page.read_text()) if "://" not in match[1]]
    missing = [
        target
        for target in targets
        if not (page.parent / target).exists() and (page.parent / target).resolve() not in GENERATED
    ]
    assert not missing, f"{page.relative_to(ROOT)}: {missing}"


def test_prose_leaves_out_code_and_tables():
    text = "one\n```\ncode\n```\n| a |\n\n    indented\ntwo"
    assert [line for _, line in prose(text) if line] == ["one", "two"]
