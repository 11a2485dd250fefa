"""Makes questions of disjoint splits, rows of them, and data sets on disk."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from smallr.core.cache import cache_dir, cached_folder
from smallr.data.builtin.problems import Problem
from smallr.data.builtin.rationales import MEDIUM, Rationales, write_rationales
from smallr.data.builtin.templates import draw_problem
from smallr.data.saving import save_splits

# Part of the name in the cache: raise it when the rows of a seed change.
VERSION = 1
KINDS = ("preference", "rationale", "teacher")
TRAIN_QUESTIONS, TEST_QUESTIONS = 1000, 100
_ATTEMPTS = 1000


def make_questions(seed: int, train: int, test: int) -> dict[str, list[Rationales]]:
    """Returns questions with their rationales; no question of `test` shares its text or its numbers with one of `train`.

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
    """Draws `count` questions of different texts, none with `forbidden` numbers."""
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
    """Returns the text without case, punctuation and spacing."""
    return " ".join("".join(char if char.isalnum() else " " for char in text.lower()).split())


def _numbers(problem: Problem) -> tuple[int, ...]:
    return tuple(sorted(problem.givens.values()))


def preference_rows(questions: Sequence[Rationales], prefix: str) -> Iterator[dict[str, Any]]:
    """Makes three rows per question, one per gap; `question_id` is `prefix` and a number."""
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
    """Yields one row per question: question, fitted rationale, answer."""
    for i, q in enumerate(questions):
        yield {
            "question": q.problem.question,
            "rationale": q.fitted,
            "answer": str(q.answer),
            "question_id": f"{prefix}-{i}",
            "template": q.problem.template,
        }


def teacher_rows(questions: Sequence[Rationales], prefix: str) -> Iterator[dict[str, Any]]:
    """Yields one row per question, as a teacher who does not know the reader writes it.

    Two in ten rationales fit, seven do not, one has a slip; which is which stands in `fits` (a critic's verdict; empty
    with a slip) and `slip` (its kind; empty without).
    """
    for i, q in enumerate(questions):
        text, fits, slip = q.unfitted, q.label, ""
        if i % 10 < 2:
            text, fits = q.fitted, MEDIUM
        elif i % 10 == 2:
            text, fits, slip = q.incorrect[0].text, "", q.incorrect[0].slip
        yield {
            "question": q.problem.question,
            "rationale": text,
            "answer": str(q.answer),
            "question_id": f"{prefix}-{i}",
            "template": q.problem.template,
            "fits": fits,
            "slip": slip,
        }


def build(
    out: str | os.PathLike[str],
    seed: int = 0,
    train_questions: int = TRAIN_QUESTIONS,
    test_questions: int = TEST_QUESTIONS,
) -> dict[str, DatasetDict]:
    """Writes `<out>/preference`, `<out>/rationale` and `<out>/teacher`, each with splits train and test.

    A data set appears whole or not at all; one that is there is replaced.

    Raises:
      ValueError: see `make_questions`.
      OSError: `out` cannot be written.
    """
    questions = make_questions(seed, train_questions, test_questions)
    makers = dict(zip(KINDS, (preference_rows, rationale_rows, teacher_rows), strict=True))
    built = {
        kind: DatasetDict({split: Dataset.from_list(list(rows(qs, split))) for split, qs in questions.items()})
        for kind, rows in makers.items()
    }
    out = Path(out)
    for kind, splits in built.items():
        save_splits(splits, out / kind)
    return built


def ensure_built(seed: int = 0, train_questions: int = TRAIN_QUESTIONS, test_questions: int = TEST_QUESTIONS) -> Path:
    """Returns the folder in the cache that holds the data sets, made on first use."""
    folder = cache_dir("arithmetic") / f"v{VERSION}-seed{seed}-{train_questions}-{test_questions}"
    return cached_folder(folder, lambda target: build(target, seed, train_questions, test_questions))
