"""Runs the arms of `answer_first` in which one student knows both orders and a soft-prompt module decides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs.adaptive.student import get_config as both_orders
from experiments.adaptive.students import Recipe, right
from experiments.adaptive.teacher_rows import Row, write_rows
from smallr.config import add_labels, add_soft_prompts, choice, rationale
from smallr.methods.adaptive.interface import Answer, Mode
from smallr.methods.adaptive.labels import labelled_rows
from smallr.methods.adaptive.opening import open_adaptive, open_student
from smallr.training.trainer import Trainer


def student_config(recipe: Recipe, seed: int, train_file: Path) -> ConfigDict:
    """Returns a student of both orders, which a mark in front of the question tells apart; twice the steps of one order."""
    config = both_orders()
    config.unlock()
    _common(config, recipe, seed, train_file, recipe.model, 2 * recipe.steps)
    config.optimizer.learning_rate = recipe.learning_rate
    config.lock()
    return config


def router_config(
    recipe: Recipe, seed: int, train_file: Path, student: str, length: int, steps: int, *, margin: float
) -> ConfigDict:
    """Returns the config of labels from the student's own likelihoods, then of the soft tokens of the decision."""
    config = add_labels(add_soft_prompts(choice(), length))
    _common(config, recipe, seed, train_file, student, steps)
    config.labels.max_tokens, config.labels.decode_slots = recipe.max_tokens, recipe.decode_slots
    config.labels.margin = margin
    config.lock()
    return config


def prompts_config(recipe: Recipe, seed: int, train_file: Path, student: str, length: int, steps: int) -> ConfigDict:
    """Returns the config of two soft prompts, one for each order, over the same student without the marks."""
    config = add_soft_prompts(rationale(order="both"), length)
    _common(config, recipe, seed, train_file, student, steps)
    config.lock()
    return config


def _common(config: ConfigDict, recipe: Recipe, seed: int, train_file: Path, student: str, steps: int) -> None:
    config.seed, config.model, config.compute.dtype = seed, student, recipe.dtype
    config.compute.remat = "none" if recipe.dtype == "float32" else "dots"
    config.data.train, config.data.train_split, config.data.eval = str(train_file), "train", ""
    config.data.chat = recipe.chat
    config.batch.rows, config.batch.row_length = recipe.rows, recipe.row_length
    config.epochs, config.steps = 0, steps
    config.log_every = 10


def fit_module(config: ConfigDict, rows: Sequence[Row], folder: Path) -> None:
    """Trains a module; a run that was begun goes on."""
    write_rows(rows, Path(config.data.train))
    with Trainer(config, folder) as trainer:
        if "labels" in config:
            trainer.load_data(*labelled_rows(config))
        trainer.fit()


def ask_modes(folder: Path, recipe: Recipe, rows: Sequence[Row]) -> dict[str, float]:
    """Asks a student of both orders always-pre and always-post; writes what each did with each question."""
    student, metrics = open_student(str(folder), decode_slots=recipe.decode_slots), {}
    questions = [row.question for row in rows]
    modes: tuple[Mode, Mode] = ("answer", "think")
    for mode in modes:  # compile before the clock runs
        student.answer(
            questions[: recipe.decode_slots],
            [mode] * len(questions[: recipe.decode_slots]),
            max_tokens=recipe.max_tokens,
        )
    for mode in modes:
        answers = student.answer(questions, [mode] * len(rows), max_tokens=recipe.max_tokens)
        tokens = [item.tokens for item in answers.items]
        found = _keep(folder / f"always-{mode}.json", answers.items, tokens, answers.seconds, rows, [mode] * len(rows))
        metrics |= {f"{name}/{mode}": value for name, value in found.items()}
    return metrics


def ask_module(folder: Path, recipe: Recipe, rows: Sequence[Row]) -> dict[str, float]:
    """Returns a module's decisions, and the answers of both kinds in one batch; the time of deciding is part of an answer's."""
    module = open_adaptive(str(folder), decode_slots=recipe.decode_slots)
    if hasattr(module, "max_tokens"):
        module.max_tokens = recipe.max_tokens
    questions = [row.question for row in rows]
    module.decide(questions[: recipe.decode_slots])  # compile before the clock runs
    decided = module.decide(questions)
    if decided.answers is None:
        answered = module.answer(questions, decided.modes, max_tokens=recipe.max_tokens)
        items, seconds = answered.items, decided.seconds + answered.seconds
        tokens = [item.tokens for item in items]
    else:  # it has written both answers to decide
        items, seconds, tokens = decided.answers, decided.seconds, decided.tokens
    metrics = _keep(folder / "module.json", items, tokens, seconds, rows, decided.modes, decided.scores)
    return metrics | {"share": decided.share, "decide_seconds": decided.seconds / len(rows)}


def _keep(
    path: Path,
    items: Sequence[Answer],
    tokens: Sequence[int],
    seconds: float,
    rows: Sequence[Row],
    modes: Sequence[Mode],
    scores: Sequence[float] = (),
) -> dict[str, float]:
    """Writes correctness, tokens, mode and score of each question; returns the means."""
    correct = [right(item.answer if item.complete else None, row.answer) for item, row in zip(items, rows, strict=True)]
    kept = {"correct": list(map(int, correct)), "tokens": list(tokens), "modes": list(modes), "scores": list(scores)}
    path.write_text(json.dumps(kept))
    return {
        "accuracy": float(np.mean(correct)),
        "tokens": float(np.mean(tokens)),
        "seconds_per_answer": seconds / len(rows),
    }
