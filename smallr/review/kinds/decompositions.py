"""Shows decompositions: the problem, its sub-questions, and how useful each was called.

confidence    mean usefulness of the sub-questions
disagreement  mean of 4 u (1 - u): 1 where half of the verdicts called each sub-question useful, 0 where all agreed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from smallr.core.errors import UserError
from smallr.review.rows import SIDE, Kind, Panel, Row, RowMaker

COLUMNS = ("question", "answers", "rewards", "true_answer")


def _edited(values: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Takes a sub-question a line. Usefulness was of the machine's sub-questions, so an edit leaves none."""
    answers = [line.strip() for line in text.splitlines() if line.strip()]
    if not answers:
        raise UserError("an edited decomposition needs at least one sub-question, one a line")
    return {**values, "answers": answers, "rewards": {**values["rewards"], "usefulness": []}}


KIND = Kind("decompositions", "Do the sub-questions, one a line, lead to the answer?", _edited)


def row(make: RowMaker, split: str, number: int, values: Mapping[str, Any]) -> Row:
    """Makes the row of a decomposition in the published layout."""
    rewards = values["rewards"]
    usefulness, right = list(rewards["usefulness"]), rewards["answer_correctness"] == 1
    count = len(usefulness)
    return make(
        split,
        number,
        values["question"],
        values,
        title=values["question"],
        text="\n".join(values["answers"]),
        panels=_panels(values, usefulness, right),
        source=split,
        verdict="answered right" if right else "answered wrong",
        approved=right,
        confidence=sum(usefulness) / count if count else None,
        disagreement=sum(4 * each * (1 - each) for each in usefulness) / count if count else None,
    )


def _panels(values: Mapping[str, Any], usefulness: list[float], right: bool) -> Iterator[Panel]:
    yield Panel("problem", values["question"])
    yield Panel("sub-questions", "\n".join(f"{i}. {text}" for i, text in enumerate(values["answers"], 1)), SIDE)
    shares = "\n".join(f"{i}. {share:.0%} of the verdicts" for i, share in enumerate(usefulness, 1))
    yield Panel("called useful by", shares or "nobody was asked", SIDE)
    yield Panel("gold answer", f"{values['true_answer']:g}")
    yield Panel("verdict", f"whoever answered them came to {'this' if right else 'another'} answer")
