"""Shows what a student answered in an evaluation, and what the grader made of it.

confidence    the record's own, if the evaluation has measured one; else the share of the question's samples that came
              to this answer, where there are several
disagreement  share of the question's samples that came to another answer, where there are several
gap           of likelihoods of options: the best minus the second
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from smallr.review.rows import MORE, SIDE, Kind, Panel, Row, RowMaker, as_shown

COLUMNS = ("id", "sample", "output", "correct", "reason")
_SHOWN = ("id", "sample", "prompt", "output", "gold", "extracted", "correct", "reason", "error")


def _edited(values: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {**values, "output": text}


KIND = Kind("answers of a student", "Is the answer right, and does its text lead to it?", _edited)


def rows(make: RowMaker, split: str, records: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Makes the rows of an evaluation's records."""
    answers: dict[str, Counter[str]] = {}
    for record in records:
        answers.setdefault(record["id"], Counter())[as_shown(record.get("extracted"))] += 1
    for number, record in enumerate(records):
        yield _row(make, split, number, record, answers[record["id"]])


def _row(make: RowMaker, split: str, number: int, values: Mapping[str, Any], answers: Counter[str]) -> Row:
    share = answers[as_shown(values.get("extracted"))] / answers.total() if answers.total() > 1 else None
    own = values.get("confidence")
    likely = sorted((each for each in values.get("loglikelihoods") or () if each is not None), reverse=True)
    return make(
        split,
        number,
        f"{values['id']} {values['sample']}",
        values,
        title=as_shown(values.get("prompt")) or values["id"],
        text=as_shown(values["output"]),
        panels=_panels(values),
        source=values["reason"] or ("right" if values["correct"] else "wrong"),
        verdict="right" if values["correct"] else "wrong",
        approved=bool(values["correct"]),
        confidence=float(own) if isinstance(own, int | float) else share,
        disagreement=None if share is None else 1 - share,
        gap=likely[0] - likely[1] if len(likely) > 1 else None,
    )


def _panels(values: Mapping[str, Any]) -> Iterator[Panel]:
    yield Panel("prompt", as_shown(values.get("prompt")))
    yield Panel("output", as_shown(values["output"]) or values.get("error") or "(no output)", SIDE)
    gold = as_shown(values.get("gold"))
    yield Panel("gold answer", gold or "(in the benchmark's data)", SIDE)
    extracted = as_shown(values.get("extracted"))
    reason = f" ({values['reason']})" if values["reason"] else ""
    yield Panel("verdict", f"{'right' if values['correct'] else 'wrong'}{reason}; answer taken: {extracted or '–'}")
    others = {name: value for name, value in values.items() if name not in _SHOWN and value is not None}
    if others:
        yield Panel("more", "\n".join(f"{name}: {as_shown(value)}" for name, value in others.items()), MORE)
