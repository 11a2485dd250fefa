"""Shows rows of CRV: the teacher's rationale and the rewrite side by side, the critique above, the verdicts below.

confidence    share of the row's attempts that were verified
disagreement  share of its attempts that had the gold answer and that the verifier rejected all the same
gap           how much longer or shorter the rewrite is, as a share of the longer one of the two
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from smallr.review.rows import MORE, SIDE, Kind, Panel, Row, RowMaker

COLUMNS = ("teacher_rationale", "original", "rationale", "attempts", "label")


def _edited(values: Mapping[str, Any], text: str) -> dict[str, Any]:
    changed = {"rationale": text, "completion": text, "rewritten": text != values["original"], "verified_by": "person"}
    return {**_passed(values), **changed}


def _passed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row with the text that was reviewed as its rationale: a person may accept what the verifier rejected."""
    text = machine_text(values)
    if values["rationale"] == text:
        return dict(values)
    rewritten = text != values["original"]
    return {**values, "rationale": text, "completion": text, "rewritten": rewritten, "verified_by": "person"}


KIND = Kind("CRV rows", "Is the rewrite right, and fit for the student?", _edited, _passed)


def machine_text(values: Mapping[str, Any]) -> str:
    """Returns the verified rationale, or of a row that failed the last attempt that had a text."""
    attempts = [attempt["rationale"] for attempt in values["attempts"] if attempt["rationale"]]
    return values["rationale"] or (attempts[-1] if attempts else "")


def row(make: RowMaker, split: str, number: int, values: Mapping[str, Any]) -> Row:
    """Makes the row of one that CRV has written, verified or failed."""
    attempts, text = values["attempts"], machine_text(values)
    passed = sum(attempt["verdict"] == "right" for attempt in attempts)
    opposed = sum(attempt["verdict"] == "rejected" for attempt in attempts) if values["answer"] else 0
    longer = max(len(text), len(values["original"]), 1)
    verdict = attempts[-1]["verdict"] if attempts else values["reason"]
    return make(
        split,
        number,
        values["id"],
        values,
        title=values["question"],
        text=text,
        panels=_panels(values, text),
        source=values["source"],
        verdict=verdict,
        approved=True if verdict == "right" else False if verdict in ("rejected", "wrong answer") else None,
        confidence=passed / len(attempts) if attempts else 0.0,
        disagreement=opposed / len(attempts) if attempts else 0.0,
        gap=abs(len(text) - len(values["original"])) / longer,
    )


def _panels(values: Mapping[str, Any], text: str) -> Iterator[Panel]:
    original = values["original"]
    yield Panel("question", values["question"])
    yield Panel("gold answer", values["answer"] or "(not known)")
    yield Panel("critique", _critique(values))
    yield Panel("original", original, SIDE, text)
    yield Panel("rewrite", text, SIDE, original, is_new=True)
    yield Panel("verdict", _verdict(values))
    *earlier, _ = values["attempts"] or [None]
    for count, attempt in enumerate(earlier, start=1):
        yield Panel(f"attempt {count} ({attempt['action']}): {attempt['verdict']}", _attempt(attempt), MORE)
    for wrong in values["incorrect"]:
        yield Panel(f"incorrect rationale ({wrong['source']}): {wrong['reason']}", wrong["rationale"], MORE)


def _critique(values: Mapping[str, Any]) -> str:
    after = f"; the rewrite: {values['relabel']}" if values["relabel"] else ""
    right = "right" if values["original_correct"] else "not right"
    return f"the original is {values['label'] or 'not labelled'} for the student{after}; by the checks it is {right}"


def _verdict(values: Mapping[str, Any]) -> str:
    count = len(values["attempts"])
    if not values["reason"]:
        return f"verified by {values['verified_by']}, attempt {count}"
    return f"{values['reason']} after {count} attempts\n{values['detail']}".strip()


def _attempt(attempt: Mapping[str, Any]) -> str:
    return f"{attempt['rationale']}\n\n{attempt['reason']}".strip()
