"""Shows rows with a prompt and one text: `prompt` and `completion`, or `question`, `rationale` and `answer`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from smallr.review.rows import MORE, SIDE, Kind, Panel, Row, RowMaker, as_shown, last_turn, with_last_turn

COLUMNS = (("prompt", "completion"), ("question", "rationale", "answer"))


def _column(values: Mapping[str, Any]) -> str:
    return "completion" if "completion" in values else "rationale"


def _edited(values: Mapping[str, Any], text: str) -> dict[str, Any]:
    column = _column(values)
    return {**values, column: with_last_turn(values[column], text)}


KIND = Kind("texts", "Is the text right, and fit to be trained on?", _edited)


def row(make: RowMaker, split: str, number: int, values: Mapping[str, Any]) -> Row:
    """Makes the row of a prompt and a completion, or of a rationale."""
    column = _column(values)
    asked = as_shown(values.get("prompt", values.get("question")))
    confidence = values.get("confidence")
    return make(
        split,
        number,
        str(values.get("id") or asked),
        values,
        title=asked,
        text=last_turn(values[column]),
        panels=_panels(values, column, asked),
        source=as_shown(values.get("source")) or split,
        confidence=float(confidence) if isinstance(confidence, int | float) else None,
    )


def _panels(values: Mapping[str, Any], column: str, asked: str) -> Iterator[Panel]:
    yield Panel("prompt" if column == "completion" else "question", asked)
    yield Panel(column, as_shown(values[column]), SIDE)
    if "answer" in values:
        yield Panel("answer", as_shown(values["answer"]), SIDE)
    shown = ("prompt", "question", "completion", "rationale", "answer", "reviewed")
    others = {name: value for name, value in values.items() if name not in shown and value not in (None, "")}
    if others:
        yield Panel("more", "\n".join(f"{name}: {as_shown(value)}" for name, value in others.items()), MORE)
