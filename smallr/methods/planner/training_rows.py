"""Makes training rows for a discriminator of candidates that execution has labelled, split by database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from smallr.core.errors import UserError
from smallr.data.saving import save_splits
from smallr.methods.planner.prompts import JudgePrompt, RewardPrompt
from smallr.methods.planner.rows import of_rows
from smallr.methods.planner.task import Problem

RIGHT, WRONG = "Yes", "No"


def training_rows(
    problems: Sequence[Problem], executed: Sequence[Mapping[str, Any]], prompt: JudgePrompt
) -> list[dict[str, Any]]:
    """Returns a row for each candidate with a label: the prompt of `yes_no`, the word that is true, and the other one."""
    rows = []
    for problem, found in zip(problems, of_rows(executed), strict=True):
        for each in found:
            if each.correct is None:
                continue
            chosen, rejected = (RIGHT, WRONG) if each.correct else (WRONG, RIGHT)
            words = {"prompt": prompt.render(problem, each.plan, each.outcome), "chosen": chosen, "rejected": rejected}
            rows.append({**words, "question_id": problem.id, "database": Path(problem.source).stem})
    return rows


def reward_rows(
    problems: Sequence[Problem], executed: Sequence[Mapping[str, Any]], prompt: RewardPrompt
) -> list[dict[str, Any]]:
    """Returns a row for each problem with labels: the prompt of a generator, its plans, and which of them are correct."""
    rows = []
    for problem, found in zip(problems, of_rows(executed), strict=True):
        known = [each for each in found if each.correct is not None]
        if known:
            labels = {"completions": [each.plan for each in known], "correct": [int(each.correct) for each in known]}
            which = {"question_id": problem.id, "database": Path(problem.source).stem}
            rows.append({"prompt": prompt.render(problem), **labels, **which})
    return rows


def write_training_rows(
    folder: Path, rows: Sequence[Mapping[str, Any]], rewards: Sequence[Mapping[str, Any]], holdout: Sequence[str]
) -> Path:
    """Writes the data sets `sft`, `preference` and `reward` to a folder, with some databases as split `test`.

    Args:
      folder: gets a folder for each.
      rows: of `training_rows`.
      rewards: of `reward_rows`.
      holdout: names of these databases.

    Raises:
      UserError: a database that has no rows, or no rows left to train on.
    """
    known = sorted({row["database"] for row in rows})
    if missing := sorted(set(holdout).difference(known)):
        raise UserError(f"config.training.holdout: no rows of {missing[0]!r}; there are {', '.join(known)}")
    if not set(known).difference(holdout):
        raise UserError("config.training.holdout names all databases: leave some to train on")
    pairs = _split(rows, holdout)
    answers = {
        name: part.rename_column("chosen", "completion").remove_columns("rejected") for name, part in pairs.items()
    }
    save_splits(DatasetDict(pairs), folder / "preference")
    save_splits(DatasetDict(answers), folder / "sft")
    save_splits(DatasetDict(_split(rewards, holdout)), folder / "reward")
    return folder


def _split(rows: Sequence[Mapping[str, Any]], holdout: Sequence[str]) -> dict[str, Dataset]:
    """Splits rows by their database."""
    parts = {"train": False, "test": True}
    return {
        name: Dataset.from_list([dict(row) for row in rows if (row["database"] in holdout) is held_out])
        for name, held_out in parts.items()
    }
