"""Shows a planner's candidates with their results; what is decided on is the one that would be picked.

That is the candidate of the highest probability under the discriminator; without one, the first of those whose result
has the most votes.

confidence    the discriminator's probability of the pick; without one, the share of votes for the pick's result
disagreement  share of the votes that are for another result
gap           probability of the pick minus that of the best candidate with another result
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smallr.core.files import read_json_lines
from smallr.review.rows import SIDE, Kind, Panel, Row, RowMaker

EXECUTED, JUDGED = "executed", "judgements_"


def _edited(values: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {**values, "pick": text}


KIND = Kind("planner candidates", "Does the picked candidate answer the question?", _edited)


def read(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (split, values): questions with executed candidates, the newest of each stage.

    A candidate has `probability` and `judged`, None where no discriminator was asked or it gave no verdict.
    """
    stage = _newest(folder, EXECUTED)
    judged = _judgements(folder)
    for executed in read_json_lines(stage / "rows.jsonl", {"id": str, "question": str, "candidates": list}):
        said = judged.get(executed["id"], [{}] * len(executed["candidates"]))
        candidates = [
            {**each, "probability": judgement.get("probability"), "judged": judgement.get("correct")}
            for each, judgement in zip(executed["candidates"], said, strict=True)
        ]
        picked = pick(candidates)
        values = {**executed, "candidates": candidates, "pick": candidates[picked]["plan"] if candidates else ""}
        yield "train", {**values, "picked": picked}


def _newest(folder: Path, name: str) -> Path:
    found = [path for path in folder.glob(f"{name}-*") if (path / "result.json").is_file()]
    return max(found, key=lambda path: (path / "result.json").stat().st_mtime)


def _judgements(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Returns the judgements of the discriminator that finished last, by question."""
    found = [path for path in folder.glob(f"{JUDGED}*") if (path / "result.json").is_file()]
    if not found:
        return {}
    newest = max(found, key=lambda path: (path / "result.json").stat().st_mtime)
    return {row["id"]: row["judgements"] for row in read_json_lines(newest / "rows.jsonl", {"judgements": list})}


def pick(candidates: Sequence[Mapping[str, Any]]) -> int:
    """Returns the index of the candidate that would be picked; see the module. -1 if there is none."""
    if not candidates:
        return -1
    votes = _votes(candidates)

    def rank(index: int) -> tuple[float, int, int]:
        each = candidates[index]
        probability = each["probability"] if each["probability"] is not None else -1.0
        return probability, votes[each["group"]] if not each["error"] else -1, -index

    return max(range(len(candidates)), key=rank)


def _votes(candidates: Sequence[Mapping[str, Any]]) -> Counter[int]:
    votes: Counter[int] = Counter()
    for each in candidates:
        votes[each["group"]] += each["votes"]
    return votes


def row(make: RowMaker, split: str, number: int, values: Mapping[str, Any]) -> Row:
    """Makes the row of a question."""
    candidates, picked = values["candidates"], values["picked"]
    chosen = candidates[picked] if candidates else {}
    votes = _votes(candidates)
    share = votes[chosen.get("group")] / max(sum(votes.values()), 1)
    probability = chosen.get("probability")
    others = [
        each["probability"]
        for each in candidates
        if each["group"] != chosen["group"] and each["probability"] is not None
    ]
    judged = chosen.get("judged")
    return make(
        split,
        number,
        values["id"],
        values,
        title=values["question"],
        text=values["pick"],
        panels=_panels(values, picked),
        source=values.get("source", ""),
        verdict={True: "correct", False: "incorrect"}.get(judged, ""),
        approved=judged,
        confidence=probability if probability is not None else share,
        disagreement=1 - share,
        gap=probability - max(others) if others and probability is not None else None,
    )


def _panels(values: Mapping[str, Any], picked: int) -> Iterator[Panel]:
    yield Panel("question", values["question"])
    if values.get("gold"):
        yield Panel("gold", values["gold"])
    chosen = values["pick"]
    for index, each in enumerate(values["candidates"]):
        is_pick = index == picked
        name = f"candidate {index + 1}{' (picked)' if is_pick else ''}: {_summary(each)}"
        result = each["error"] or each["preview"] or "(no rows)"
        yield Panel(name, each["plan"], SIDE, None if is_pick else chosen)
        yield Panel(f"result of candidate {index + 1}", result, SIDE)


def _summary(candidate: Mapping[str, Any]) -> str:
    parts = [f"{candidate['votes']} votes"]
    if candidate["probability"] is not None:
        parts.append(f"probability {candidate['probability']:.2f}")
    if candidate["correct"] is not None:
        parts.append("gold result" if candidate["correct"] else "not the gold result")
    return ", ".join(parts)
