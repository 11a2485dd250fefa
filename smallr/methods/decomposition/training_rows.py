"""Makes the trainer's rows of decompositions: for cloning, for ILQL, and pairs for preference losses.

bc, filtered_bc          prompt, completion, text (both in one)       kind sft; format=text scores the problem too
ilql_full, ilql_sparse   prompt, completions, reward                  kind completions, segment_columns=("reward",)
pairs                    prompt, chosen, rejected, gap                kind preference
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value

from smallr.data.rows import GAPS
from smallr.data.saving import save_splits
from smallr.methods.decomposition.rows import Decomposition, by_problem
from smallr.methods.decomposition.sequence import PUBLISHED, Markers

REWARDS = ("full", "sparse")
_TEXT, _NUMBER = Value("string"), Value("float64")
_CLONING = Features({"prompt": _TEXT, "completion": _TEXT, "text": _TEXT})
_ILQL = Features({"prompt": _TEXT, "completions": List(List(_TEXT)), "reward": List(List(_NUMBER))})
_PAIRS = Features({name: _TEXT for name in ("prompt", "chosen", "rejected", "gap")} | {"difference": _NUMBER})
SETS = ("bc", "filtered_bc", *(f"ilql_{rewards}" for rewards in REWARDS), "pairs")
# The least difference in mean usefulness of a medium and of a large gap.
THRESHOLDS = (1 / 3, 2 / 3)


def cloning_rows(
    rows: Sequence[Decomposition], markers: Markers = PUBLISHED, *, filtered: bool = False
) -> list[dict[str, str]]:
    """Returns rows for behavioural cloning; `filtered` keeps those whose answer was right."""
    made = []
    for row in rows:
        if row.correctness == 1 or not filtered:
            prompt, completion = markers.prompt(row.question), markers.completion(row.sub_questions)
            made.append({"prompt": prompt, "completion": completion, "text": prompt + completion})
    return made


def ilql_rows(rows: Sequence[Decomposition], rewards: str, markers: Markers = PUBLISHED) -> list[dict[str, Any]]:
    """Returns rows with a reward for each sub-question and one for the end.

    Args:
      rows: to be learnt from.
      rewards: `full`: a sub-question's usefulness, and the correctness of the answer for the end; `sparse`: the latter
        alone. For `full`, rows without usefulness are left out: nobody knows what their sub-questions are worth.
      markers: of the sequence.
    """
    made = []
    for row in rows:
        if rewards == "full" and not row.usefulness:
            continue
        own = row.usefulness if rewards == "full" else (0.0,) * len(row.sub_questions)
        made.append(
            {
                "prompt": markers.prompt(row.question),
                "completions": [markers.segments(row.sub_questions)],
                "reward": [[*own, row.correctness]],
            }
        )
    return made


def pair_rows(
    rows: Sequence[Decomposition], markers: Markers = PUBLISHED, thresholds: tuple[float, float] = THRESHOLDS
) -> list[dict[str, Any]]:
    """Returns all pairs of decompositions of one problem of which one is better.

    The better one has the right answer; where both or neither have it, it has the higher mean usefulness. Two that are
    equal in both, or in their texts, make no pair.
    """
    return [
        {
            "prompt": markers.prompt(chosen.question),
            "chosen": markers.completion(chosen.sub_questions),
            "rejected": markers.completion(rejected.sub_questions),
            "gap": gap_of(usefulness_difference(chosen, rejected), thresholds),
            "difference": usefulness_difference(chosen, rejected),
        }
        for group in by_problem(rows).values()
        for chosen, rejected in _ordered(group)
    ]


def _ordered(group: Sequence[Decomposition]) -> Iterator[tuple[Decomposition, Decomposition]]:
    for a, b in itertools.combinations(group, 2):
        difference = a.correctness - b.correctness or usefulness_difference(a, b)
        if difference and a.sub_questions != b.sub_questions:
            yield (a, b) if difference > 0 else (b, a)


def usefulness_difference(chosen: Decomposition, rejected: Decomposition) -> float:
    """Returns by how much the chosen sub-questions are more useful in the mean; 0 where that is not known."""
    difference = chosen.mean_usefulness - rejected.mean_usefulness
    return 0.0 if math.isnan(difference) else round(difference, 9)


def gap_of(difference: float, thresholds: tuple[float, float] = THRESHOLDS) -> str:
    """Returns small, medium or large; a pair whose chosen side is the less useful one has a small gap."""
    return GAPS[sum(difference >= threshold for threshold in thresholds)]


def write_training_sets(
    folder: Path,
    splits: Mapping[str, Sequence[Decomposition]],
    markers: Markers = PUBLISHED,
    thresholds: tuple[float, float] = THRESHOLDS,
) -> dict[str, dict[str, int]]:
    """Writes the data sets of `SETS`, each with all splits; gives their numbers of rows by set and split.

    A set that would have no row is not written, e.g. pairs where each problem has one decomposition.
    """
    sets = {
        "bc": (_CLONING, lambda rows: cloning_rows(rows, markers)),
        "filtered_bc": (_CLONING, lambda rows: cloning_rows(rows, markers, filtered=True)),
        **{
            f"ilql_{rewards}": (_ILQL, lambda rows, name=rewards: ilql_rows(rows, name, markers)) for rewards in REWARDS
        },
        "pairs": (_PAIRS, lambda rows: pair_rows(rows, markers, thresholds)),
    }
    counts: dict[str, dict[str, int]] = {}
    for name, (features, make) in sets.items():
        made = {split: make(rows) for split, rows in splits.items()}
        if any(made.values()):
            save_splits(DatasetDict({split: data_set(rows, features) for split, rows in made.items()}), folder / name)
        counts[name] = {split: len(rows) for split, rows in made.items()}
    return counts


def data_set(rows: Sequence[Mapping[str, Any]], features: Features) -> Dataset:
    """Returns rows as a data set, which may have none."""
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)
