"""What clients of OpenAI and vLLM may send is what the page on serving says, line by line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from smallr.language.serving.bodies import IGNORED, NEUTRAL, ChatBody, TextBody, parse
from smallr.language.serving.errors import BadRequest

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
BASES = {"chat": (ChatBody, {"messages": [{"role": "user", "content": "hi"}]}), "text": (TextBody, {"prompt": "hi"})}


def table() -> list[tuple[str, str, dict[str, str]]]:
    """Fields, examples and what becomes of them in each kind of completion."""
    part = PAGE.read_text().partition("## What clients may send")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")][2:]
    return [
        (cells[0].strip(" `"), cells[1].strip(" `"), {"chat": cells[2].strip(), "text": cells[3].strip()})
        for cells in lines
    ]


@pytest.mark.parametrize(
    ("field", "example", "says"), table(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_table_is_true(field, example, says):
    for kind, (body, base) in BASES.items():
        fields = base | {field: json.loads(example)}
        if says[kind] == "works":
            parse(body, fields).requests(64)
        else:
            assert says[kind] == "refused"
            with pytest.raises(BadRequest, match=field) as caught:
                parse(body, fields).requests(64)
            assert caught.value.param == field


def test_the_table_is_complete():
    named = {field for field, _, _ in table()}
    known = {*ChatBody.model_fields, *TextBody.model_fields, *NEUTRAL} - IGNORED
    assert known <= named
    text = PAGE.read_text()
    assert [name for name in IGNORED if f"`{name}`" not in text] == []
