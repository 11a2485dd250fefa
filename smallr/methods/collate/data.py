"""Reads the rows of a COLLATE run, mixes the modes of instruction tuning and cuts the rationale data into shares."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.data.builtin.dataset import normalise
from smallr.data.saving import save_rows
from smallr.data.sources import load_rows
from smallr.methods.collate.modes import ANSWER, GIVEN, RATIONALE, REFINE, Modes
from smallr.training.progress import log

ROWS = "rows"  # folder of a stage's data set
_LETTER = re.compile(r"[(\[]?[A-Ja-j][)\].]?")
_CALCULATION = re.compile(r"<<[^<>]*>>")  # GSM8K's notes for a calculator

Row = Mapping[str, Any]


class NothingLeftError(UserError):
    """Says that a stage has no row or pair left, so that a run cannot go on."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Rows with `question`, `answer` and `rationale` (empty: none), and what was left out, by set and reason.

    Attributes:
      tuning: for instruction tuning and the providers.
      task: for the rounds; their rationales are not looked at.
      validation: never trained on.
      counts: of each set.
    """

    tuning: list[Row]
    task: list[Row]
    validation: list[Row]
    counts: dict[str, dict[str, int]]


def load_data(config: ConfigDict) -> Data:
    """Reads all rows; those of questions that are validated on are left out of the others.

    Raises:
      UserError: a source that cannot be used, no rationale at all, or answers that are letters of options.
    """
    data = config.data
    validation, of_validation = _read(config, "validation", data.validation, set())
    held = {normalise(row["question"]) for row in validation}
    tuning, of_tuning = _read(config, "rows", data.rows, held)
    task, of_task = _read(config, "task", data.task, held) if data.task else (tuning, of_tuning)
    if not any(row["rationale"] for row in tuning):
        raise UserError(
            f"config.data.rows={data.rows}: no row has a rationale, so there is nothing to tune the mode {RATIONALE} with; "
            "name the column with config.data.columns.rationale=NAME, or add rationales to some rows"
        )
    return Data(tuning, task, validation, {"rows": of_tuning, "task": of_task, "validation": of_validation})


def _read(config: ConfigDict, field: str, spec: str, held: set[str]) -> tuple[list[Row], dict[str, int]]:
    """Returns the usable rows of a set, and the counts of all."""
    source, _, split = spec.rpartition("@") if "@" in spec else (spec, "", "train")
    names = {ours: theirs for ours, theirs in config.data.columns.items() if ours != "rationale" or ours != theirs}
    found = load_rows(source, split, columns=names)
    separator = config.marks.answer.strip()
    counts: Counter[str] = Counter(read=0)
    rows: list[Row] = []
    for raw in found:
        counts["read"] += 1
        row, reason = _usable(_texts(raw, config.data.answer_mark), separator, held)
        if reason:
            counts[reason] += 1
        if row is not None:
            rows.append(row)
            counts["kept"] += 1
    if not rows:
        raise UserError(f"config.data.{field}={spec}: no row can be used ({_listed(counts)})")
    _check_letters(rows, field, spec)
    return rows, dict(counts)


def _texts(raw: Row, answer_mark: str) -> dict[str, str]:
    row = {name: str(raw.get(name) if raw.get(name) is not None else "").strip() for name in ("question", "answer")}
    row["rationale"] = str(raw.get("rationale") or "").strip()
    if answer_mark and answer_mark in row["answer"]:
        rationale, _, answer = row["answer"].rpartition(answer_mark)
        row |= {"rationale": _CALCULATION.sub("", rationale).strip(), "answer": answer.strip()}
    return row


def _usable(row: dict[str, str], separator: str, held: set[str]) -> tuple[Row | None, str]:
    """Returns the row as it is used, if it is, and what was left out."""
    if not row["question"]:
        return None, "empty question"
    if not row["answer"]:
        return None, "empty answer"
    if normalise(row["question"]) in held:
        return None, "question of the validation rows"
    if separator in row["rationale"]:
        return {**row, "rationale": ""}, "rationale left out: it holds the answer mark"
    return row, ""


def _check_letters(rows: Sequence[Row], field: str, spec: str) -> None:
    """Refuses letters of options as answers: their likelihood says little of a rationale."""
    if all(_LETTER.fullmatch(row["answer"]) for row in rows):
        raise UserError(
            f"config.data.{field}={spec}, row 0: the answer is {rows[0]['answer']!r}, and all answers are letters; the target "
            "of a choice task is the option's text: write it into the column answer"
        )


def mixed_modes(folder: Path, rows: Sequence[Row], modes: Modes, refine: bool) -> dict[str, Any]:
    """Writes the rows of instruction tuning: each mode that a question can serve, as prompt and completion."""
    mixed = [each for row in rows for each in _modes_of(row, modes)]
    if refine:
        mixed += _refinements(rows, modes)
    counts = Counter(each["mode"] for each in mixed)
    return written(folder, mixed, {"rows in": len(rows), **counts})


def _modes_of(row: Row, modes: Modes) -> Iterable[dict[str, str]]:
    answer = modes.written_answer(row["answer"])
    yield {"mode": ANSWER, "prompt": modes.prompt(ANSWER, row["question"]), "completion": answer}
    if rationale := row["rationale"]:
        prompt = modes.prompt(RATIONALE, row["question"])
        yield {"mode": RATIONALE, "prompt": prompt, "completion": modes.written_rationale(rationale)}
        yield {"mode": GIVEN, "prompt": modes.prompt(GIVEN, row["question"], rationale), "completion": answer}


def _refinements(rows: Sequence[Row], modes: Modes) -> Iterable[dict[str, str]]:
    """Yields rows of the fourth mode: the draft is the rationale of another question, or the right one itself."""
    given = [row for row in rows if row["rationale"]]
    for number, row in enumerate(given):
        draft = given[number - 1 if number % 2 else number]["rationale"]
        prompt = modes.prompt(REFINE, row["question"], draft)
        yield {"mode": REFINE, "prompt": prompt, "completion": modes.written_rationale(row["rationale"])}


def shares(rows: Sequence[Row], count: int, seed: int, least: int) -> list[list[Row]]:
    """Cuts the rows with a rationale at random into disjoint shares, whose sizes differ by one at most.

    Raises:
      UserError: a share would have fewer rows than a batch.
    """
    given = [row for row in rows if row["rationale"]]
    random.Random(f"collate shares {seed}").shuffle(given)
    cut = [given[number::count] for number in range(count)]
    if len(cut[-1]) < least:
        raise UserError(
            f"config.providers={count}: {len(given)} rows with a rationale give shares of {len(cut[-1])}, fewer than a step "
            f"holds (config.training.rows={least}): give more rows, or fewer providers or rows a step"
        )
    return cut


def task_parts(rows: Sequence[Row], count: int, seed: int) -> list[list[Row]]:
    """Cuts the task rows at random into disjoint parts, one for each training of a run with refinement.

    Raises:
      UserError: fewer rows than parts.
    """
    if len(rows) < count:
        raise UserError(f"config.refine: {len(rows)} task rows cannot be cut into {count} parts; give more rows")
    order = list(rows)
    random.Random(f"collate task {seed}").shuffle(order)
    return [order[number::count] for number in range(count)]


def written(folder: Path, rows: Sequence[Row], counts: Mapping[str, int]) -> dict[str, Any]:
    """Writes a stage's data set, for `load_from_disk`, and logs the counts; returns its folder and them, the stage's value."""
    save_rows(rows, folder / ROWS)
    log(f"{folder.name}: {_listed(counts)}")
    return {"rows": folder / ROWS, "counts": {name: int(count) for name, count in counts.items()}}


def opened(stage: Mapping[str, Any]) -> datasets.Dataset:
    """Returns the data set of a stage's value."""
    return datasets.Dataset.load_from_disk(str(stage["rows"]))


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
