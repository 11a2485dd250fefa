"""Makes training rows for a discriminator of candidates that execution has labelled, split by database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from smallr.core.errors import UserError
from smallr.data.saving import save_splits
from smallr.methods.planner.prompts import JudgePrompt
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


def write_training_rows(folder: Path, rows: Sequence[Mapping[str, Any]], holdout: Sequence[str]) -> Path:
    """Writes the data sets `sft` and `preference` to a folder, with the rows of some databases as split `test`.

    Raises:
      UserError: a database that has no rows, or no rows left to train on.
    """
    known = sorted({row["database"] for row in rows})
    if missing := sorted(set(holdout).difference(known)):
        raise UserError(f"config.training.holdout: no rows of {missing[0]!r}; there are {', '.join(known)}")
    splits = {
        "train": [row for row in rows if row["database"] not in holdout],
        "test": [row for row in rows if row["database"] in holdout],
    }
    if not splits["train"]:
        raise UserError("config.training.holdout names all databases: leave some to train on")
    pairs = {name: Dataset.from_list(list(part)) for name, part in splits.items()}
    answers = {
        name: part.rename_column("chosen", "completion").remove_columns("rejected") for name, part in pairs.items()
    }
    save_splits(DatasetDict(pairs), folder / "preference")
    save_splits(DatasetDict(answers), folder / "sft")
    return folder
