"""Makes preference pairs of the three gaps from a CRV run.

    smallr pairs --crv=FOLDER --out=FOLDER [--mix=natural|balanced|1:1:2] \
        [--holdout=SOURCE[@SPLIT] …] [--exempt=test]

  gap     chosen                               rejected
  small   rethought: fits, right               the teacher's: does not fit, right
  medium  the teacher's: does not fit, right   incorrect
  large   rethought: fits, right               incorrect

A rationale that the critic calls medium fits as it is: it gives a large pair, no small one (there is nothing to prefer to
itself) and no medium one (it does not fail to fit). A teacher's rationale that is wrong is chosen in no pair. Of rows that
people have reviewed, a rejected one gives no pair, and what the others say in `reviewed` goes to the pairs whose chosen
completion is the text that was reviewed.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Value, load_from_disk

from smallr.core.errors import UserError
from smallr.core.files import write_json
from smallr.data.errors import DataError
from smallr.data.reviewed import COLUMN, FEATURE, REJECTED, status_of
from smallr.data.rows import GAPS
from smallr.data.saving import save_splits
from smallr.methods.crv.holdout import Holdout, normalise

FEATURES = Features(
    {
        "prompt": Value("string"),
        "chosen": Value("string"),
        "rejected": Value("string"),
        "gap": Value("string"),  # small | medium | large
        "id": Value("string"),  # of the row in the CRV run
        "question": Value("string"),
        "answer": Value("string"),
        "label": Value("string"),  # the critic's, on the teacher's rationale
        "chosen_from": Value("string"),  # rethought | teacher
        "rejected_from": Value("string"),  # teacher (right, or wrong where the gap is not small) | student | injected
        "rejected_answer": Value("string"),  # the wrong one; empty in a small gap, or without a gold answer
    }
)


@dataclasses.dataclass
class Outcome:
    """Holds pairs and what was left out.

    Attributes:
      pairs: of one split.
      natural: pairs of each gap before the mix was taken.
      duplicates: pairs that were there already.
      contaminated: questions of the holdout, each with its pairs left out.
      rejected: rows that people have rejected, without pairs.
      not_small: rows without a small or medium pair, and why.
    """

    pairs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    natural: Counter[str] = dataclasses.field(default_factory=Counter)
    duplicates: int = 0
    contaminated: list[str] = dataclasses.field(default_factory=list)
    rejected: int = 0
    not_small: Counter[str] = dataclasses.field(default_factory=Counter)


def row_pairs(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the pairs of a verified row, at most one of each gap; medium and large take different incorrect rationales."""
    shared = {name: row[name] for name in ("prompt", "id", "question", "answer", "label")}
    fits, original, incorrect = row["rationale"], row["original"], row["incorrect"]
    unfitting = row["label"] != "medium" and row["original_correct"] and fits != original

    def pair(gap: str, chosen: str, chosen_from: str, rejected: Mapping[str, str]) -> dict[str, Any]:
        return {
            **shared,
            **({COLUMN: row[COLUMN] if chosen == fits else None} if COLUMN in row else {}),
            "gap": gap,
            "chosen": chosen,
            "chosen_from": chosen_from,
            "rejected": rejected["rationale"],
            "rejected_from": rejected["source"],
            "rejected_answer": rejected["answer"],
        }

    rethought = "rethought" if row["rewritten"] else "teacher"
    if unfitting:
        yield pair("small", fits, rethought, {"rationale": original, "source": "teacher", "answer": ""})
    if unfitting and incorrect:
        yield pair("medium", original, "teacher", incorrect[0])
    if incorrect:
        yield pair("large", fits, rethought, incorrect[-1])


def make_pairs(
    rows: Sequence[Mapping[str, Any]], mix: str = "natural", holdout: Holdout | None = None, seed: int = 0
) -> Outcome:
    """Makes the pairs of one split.

    Args:
      rows: verified ones.
      mix: natural: all pairs; balanced: as many of each gap as the rarest has; `1:1:2`: small, medium and large in these
        shares, as many as there can be.
      holdout: questions that no pair may have.
      seed: of the choice among pairs of a gap that has too many.

    Raises:
      UserError: a mix that is none, or that asks for a gap without pairs.
    """
    outcome, seen = Outcome(), set()
    found: dict[str, list[dict[str, Any]]] = {gap: [] for gap in GAPS}
    for row in rows:
        if holdout is not None and normalise(row["question"]) in holdout:
            outcome.contaminated.append(row["question"])
            continue
        if status_of(row.get(COLUMN)) == REJECTED:
            outcome.rejected += 1
            continue
        if row["label"] == "medium":
            outcome.not_small["fits as it is"] += 1
        elif not row["original_correct"]:
            outcome.not_small["the teacher's rationale is wrong"] += 1
        for pair in row_pairs(row):
            key = tuple(pair[name] for name in ("prompt", "chosen", "rejected"))
            outcome.duplicates += key in seen
            if key not in seen:
                seen.add(key)
                found[pair["gap"]].append(pair)
    outcome.natural = Counter({gap: len(pairs) for gap, pairs in found.items()})
    kept = _kept(outcome.natural, mix)
    rng = random.Random(f"{seed} pairs")
    for gap, pairs in found.items():
        chosen = sorted(rng.sample(range(len(pairs)), kept[gap]))
        outcome.pairs += [pairs[index] for index in chosen]
    return outcome


def _kept(natural: Mapping[str, int], mix: str) -> dict[str, int]:
    """Returns how many pairs of each gap a mix takes."""
    if mix == "natural":
        return dict(natural)
    try:
        shares = [1, 1, 1] if mix == "balanced" else [int(part) for part in mix.split(":")]
    except ValueError:
        shares = []
    if len(shares) != len(GAPS) or min(shares) < 0 or not any(shares):
        raise UserError(f"mix {mix!r}: expected natural, balanced, or shares of {', '.join(GAPS)} like 1:1:2")
    wanted = dict(zip(GAPS, shares, strict=True))
    for gap, share in wanted.items():
        if share and not natural[gap]:
            raise UserError(f"mix {mix!r}: there are no pairs of the {gap} gap (there are {dict(natural)})")
    unit = min(natural[gap] / share for gap, share in wanted.items() if share)
    return {gap: int(unit * share) for gap, share in wanted.items()}


def build_pairs(
    crv: Path,
    out: Path,
    *,
    mix: str = "natural",
    holdout: Sequence[str] = (),
    exempt: Sequence[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Writes pairs of all splits of a CRV run, with pairs.json beside them.

    Args:
      crv: folder of the run, or its data set `verified`.
      out: folder to write, for `load_from_disk`.
      mix: see `make_pairs`.
      holdout: evaluation sets, see `Holdout.load`.
      exempt: splits that nothing is trained on, whose questions may be in evaluation sets.
      seed: see `make_pairs`.

    Returns:
      What pairs.json holds: counts by split.

    Raises:
      UserError: no CRV run, no such split, an unknown mix, no pairs at all.
    """
    splits, known = _verified(crv), Holdout.load(list(holdout))
    for split in exempt:
        if split not in splits:
            raise UserError(f"exempt: {crv} has no split {split!r}; there is {', '.join(splits)}")
    outcomes = {
        split: make_pairs(rows.to_list(), mix, None if split in exempt else known, seed) if len(rows) else Outcome()
        for split, rows in splits.items()
    }
    if not any(outcome.pairs for outcome in outcomes.values()):
        raise UserError(
            f"{crv}: its verified rows give no pairs; are there incorrect rationales, or only labels medium?"
        )
    report = {
        "crv": str(crv),
        "mix": mix,
        "seed": seed,
        "holdout": list(holdout),
        "exempt": list(exempt),
        "holdout_questions": len(known),
        "splits": {split: _counts(len(splits[split]), outcome) for split, outcome in outcomes.items()},
    }
    reviewed = {COLUMN: FEATURE} if any(COLUMN in rows.column_names for rows in splits.values()) else {}
    features = Features({**FEATURES, **reviewed})
    save_splits(DatasetDict({split: _data_set(each.pairs, features) for split, each in outcomes.items()}), out)
    write_json(out / "pairs.json", report)
    return report


def _counts(rows: int, outcome: Outcome) -> dict[str, Any]:
    return {
        "rows": rows,
        "pairs": {gap: sum(pair["gap"] == gap for pair in outcome.pairs) for gap in GAPS},
        "natural": {gap: outcome.natural[gap] for gap in GAPS},
        "rejected_from": dict(Counter(pair["rejected_from"] for pair in outcome.pairs)),
        "duplicates": outcome.duplicates,
        "without_small_or_medium": dict(outcome.not_small),
        "rejected_in_review": outcome.rejected,
        "contaminated_rows": len(outcome.contaminated),
        "contaminated": outcome.contaminated,
    }


def _verified(folder: Path) -> DatasetDict:
    for place in (folder / "verified", folder):
        if (place / "dataset_dict.json").is_file():
            splits = load_from_disk(place)
            if not {"original", "incorrect"} <= set(next(iter(splits.values())).column_names):
                raise DataError(f"{place} holds another data set, not the verified rows of a CRV run")
            return splits
    raise DataError(f"{folder} holds no data set `verified`: run smallr crv annotate --out={folder} to its end first")


def _data_set(pairs: Sequence[Mapping[str, Any]], features: Features) -> Dataset:
    return Dataset.from_dict({name: [pair.get(name) for pair in pairs] for name in features}, features=features)
