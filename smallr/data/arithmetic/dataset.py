"""Questions of disjoint splits, the rows made of them, and data sets on disk."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from smallr.cache import cache_dir
from smallr.data.arithmetic.problems import Problem
from smallr.data.arithmetic.rationales import MEDIUM, Rationales, write_rationales
from smallr.data.arithmetic.templates import draw_problem

# Part of the name in the cache: raise it when the rows of a seed change.
VERSION = 1
KINDS = ("preference", "rationale")
TRAIN_QUESTIONS, TEST_QUESTIONS = 1000, 100
_ATTEMPTS = 1000


def make_questions(seed: int, train: int, test: int) -> dict[str, list[Rationales]]:
    """Questions with their rationales; no question of `test` shares its text or its numbers with one of `train`.

    The first questions of a split do not depend on how many follow, and those of `test` not on `train`.

    Raises:
      ValueError: a count below 1, or more questions than the templates have numbers for.
    """
    if train < 1 or test < 1:
        raise ValueError(f"train and test need at least one question each, got {train} and {test}")
    held_out = _distinct(random.Random(f"smallr arithmetic {seed} test"), test, frozenset())
    numbers = frozenset(_numbers(question.problem) for question in held_out)
    return {"train": _distinct(random.Random(f"smallr arithmetic {seed} train"), train, numbers), "test": held_out}


def _distinct(rng: random.Random, count: int, forbidden: frozenset[tuple[int, ...]]) -> list[Rationales]:
    """`count` questions of different texts, none with `forbidden` numbers."""
    found: dict[str, Rationales] = {}
    misses = 0
    while len(found) < count:
        problem = draw_problem(rng)
        text = normalise(problem.question)
        written = None if text in found or _numbers(problem) in forbidden else write_rationales(problem, rng)
        if written:
            found[text] = written
        misses = 0 if written else misses + 1
        if misses == _ATTEMPTS:
            raise ValueError(f"only {len(found)} different questions could be drawn of {count}; ask for fewer")
    return list(found.values())


def normalise(text: str) -> str:
    """Text without case, punctuation and spacing."""
    return " ".join("".join(char if char.isalnum() else " " for char in text.lower()).split())


def _numbers(problem: Problem) -> tuple[int, ...]:
    return tuple(sorted(problem.givens.values()))


def preference_rows(questions: Sequence[Rationales], prefix: str) -> Iterator[dict[str, Any]]:
    """Three rows per question, one per gap; `question_id` is `prefix` and a number."""
    for i, q in enumerate(questions):
        medium, large = q.incorrect
        shared = {
            "prompt": q.problem.question,
            "answer": str(q.answer),
            "question_id": f"{prefix}-{i}",
            "template": q.problem.template,
        }
        yield {**shared, "chosen": q.fitted, "rejected": q.unfitted, "gap": "small", "label": q.label, "slip": ""}
        yield {
            **shared,
            "chosen": q.unfitted,
            "rejected": medium.text,
            "gap": "medium",
            "label": q.label,
            "slip": medium.slip,
        }
        yield {
            **shared,
            "chosen": q.fitted,
            "rejected": large.text,
            "gap": "large",
            "label": MEDIUM,
            "slip": large.slip,
        }


def rationale_rows(questions: Sequence[Rationales], prefix: str) -> Iterator[dict[str, Any]]:
    """One row per question: question, fitted rationale, answer."""
    for i, q in enumerate(questions):
        yield {
            "question": q.problem.question,
            "rationale": q.fitted,
            "answer": str(q.answer),
            "question_id": f"{prefix}-{i}",
            "template": q.problem.template,
        }


def build(
    out: str | os.PathLike[str],
    seed: int = 0,
    train_questions: int = TRAIN_QUESTIONS,
    test_questions: int = TEST_QUESTIONS,
) -> dict[str, DatasetDict]:
    """Writes `<out>/preference` and `<out>/rationale`, each with splits train and test, for `load_from_disk`.

    A data set appears whole or not at all; one that is there is replaced.

    Raises:
      ValueError: see `make_questions`.
      OSError: `out` cannot be written.
    """
    questions = make_questions(seed, train_questions, test_questions)
    makers = dict(zip(KINDS, (preference_rows, rationale_rows), strict=True))
    built = {
        kind: DatasetDict({split: Dataset.from_list(list(rows(qs, split))) for split, qs in questions.items()})
        for kind, rows in makers.items()
    }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for kind, splits in built.items():
        _save(splits, out / kind)
    return built


def ensure_built(seed: int = 0, train_questions: int = TRAIN_QUESTIONS, test_questions: int = TEST_QUESTIONS) -> Path:
    """The folder in the cache that holds both data sets, made on first use."""
    folder = cache_dir("arithmetic") / f"v{VERSION}-seed{seed}-{train_questions}-{test_questions}"
    if not all((folder / kind).is_dir() for kind in KINDS):
        build(folder, seed, train_questions, test_questions)
    return folder


def _save(splits: DatasetDict, target: Path) -> None:
    """Saves beside the target and renames, so that nobody ever sees half a data set."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        new, old = scratch / "new", scratch / "old"
        with _no_bars():
            splits.save_to_disk(new)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:  # another process built the same in the meantime
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Saving takes milliseconds: no progress bars, which `datasets` switches for the whole process."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
