"""Writes the data sets of decompositions: raw, in the published layout, and the trainer's rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict, Features

from smallr.core.files import write_json, write_text
from smallr.data.saving import save_splits
from smallr.data.sources import load_part
from smallr.methods.decomposition import raw, rows
from smallr.methods.decomposition.answers import answer_check
from smallr.methods.decomposition.raw import RawRow, decompositions, load_raw
from smallr.methods.decomposition.rows import Decomposition, load_decompositions
from smallr.methods.decomposition.sequence import Markers
from smallr.methods.decomposition.training_rows import SETS, THRESHOLDS, data_set, write_training_sets

FILES = ("raw", "decompositions", *SETS)


def write_data_sets(
    folder: Path,
    raw_rows: Mapping[str, Sequence[RawRow]],
    made: Mapping[str, Sequence[Decomposition]],
    markers: Markers,
    thresholds: tuple[float, float] = THRESHOLDS,
) -> dict[str, dict[str, int]]:
    """Writes everything that training and other programs read; gives the numbers of rows by set and split.

    Args:
      folder: gets a folder for each of `FILES`, and raw.SPLIT.jsonl and decompositions.SPLIT.jsonl.
      raw_rows: by split; none where they are not known.
      made: decompositions by split.
      markers: of the sequence.
      thresholds: of the gaps of pairs.
    """
    counts = {}
    for name, values, features in (("raw", raw_rows, raw.FEATURES), ("decompositions", made, rows.FEATURES)):
        if any(values.values()):
            _write(folder, name, {split: [row.published() for row in own] for split, own in values.items()}, features)
            counts[name] = {split: len(own) for split, own in values.items()}
    return counts | write_training_sets(folder, made, markers, thresholds)


def _write(folder: Path, name: str, splits: Mapping[str, list[dict[str, Any]]], features: Features) -> None:
    save_splits(DatasetDict({split: data_set(own, features) for split, own in splits.items()}), folder / name)
    for split, own in splits.items():
        write_text(folder / f"{name}.{split}.jsonl", "".join(f"{json.dumps(row)}\n" for row in own))


def convert(
    source: str, split: str, folder: Path, *, validation: float, parser: str, markers: Markers
) -> dict[str, Any]:
    """Writes the data sets of rows that are there: raw ones, or in the published layout.

    Args:
      source: anything that training reads rows from.
      split: of it.
      folder: gets the data sets, and convert.json with what was left out.
      validation: share of the problems that go into a split of that name, with all their decompositions.
      parser: of the final answers of raw rows, one of `answers.PARSERS`.
      markers: of the sequence.

    Raises:
      DataError: no such source or split, or nothing in it can be used.
    """
    if "problem" in load_part(source, split).rows.column_names:
        raw_rows = load_raw(source, split)
        with answer_check(parser) as check:
            found, left_out = decompositions(raw_rows, check, markers, published=parser == "published")
    else:
        loaded = load_decompositions(source, split, markers)
        raw_rows, found, left_out = [], loaded.rows, loaded.left_out
    splits: dict[str, list[Decomposition]] = {"train": []} | ({"validation": []} if validation else {})
    raw_splits: dict[str, list[RawRow]] = {name: [] for name in splits}
    for row in found:
        splits[_split_of(row.question, validation)].append(row)
    for row in raw_rows:
        raw_splits[_split_of(row.problem, validation)].append(row)
    report = {
        "source": source,
        "split": split,
        "left_out": left_out,
        "rows": write_data_sets(folder, raw_splits, splits, markers),
    }
    write_json(folder / "convert.json", report)
    return report


def _split_of(question: str, validation: float) -> str:
    """Returns the split of a problem, which depends on its text alone."""
    draw = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") / 2**64
    return "validation" if draw < validation else "train"
