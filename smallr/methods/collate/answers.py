"""Has models answer questions in a mode, grades the answers, and chooses the provider that helps most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smallr.evals.graders.base import Job
from smallr.evals.graders.matching import numbers, texts, to_decimal
from smallr.evals.statistics import pass_at_1
from smallr.methods.collate.data import Row, opened, written
from smallr.methods.collate.generation import CUT, EMPTY, REFUSED
from smallr.methods.collate.modes import RATIONALE, Modes
from smallr.methods.collate.writer import Writer


def answer_questions(
    folder: Path,
    writer: Writer,
    model: Path,
    rows: Sequence[Row],
    mode: str,
    modes: Modes,
    options: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a model's answers with `correct`; in mode I→R also `text`, `usable` and `problem` of its rationales.

    Args:
      folder: of the stage.
      writer: that the stages share.
      model: a run.
      rows: questions with gold answers.
      mode: I→A, I→R (the model goes on with its answer) or [I;R]→A.
      modes: texts of the modes.
      options: of `Writer.complete`.
      given: value of the stage that wrote the rationales of mode [I;R]→A.
    """
    rationales = [each["text"] for each in opened(given)] if given else [""] * len(rows)
    prompts = [modes.prompt(mode, row["question"], text) for row, text in zip(rows, rationales, strict=True)]
    graded, completions = [], writer.complete(folder, model, prompts, options)
    for row, found in zip(rows, completions, strict=True):
        rationale, answer = modes.split(found["text"]) if mode == RATIONALE else ("", found["text"])
        problem = (
            REFUSED if found["error"] else CUT if modes.separator not in found["text"] else "" if rationale else EMPTY
        )
        graded.append(
            {
                **{name: row[name] for name in ("question", "answer")},
                "predicted": answer,
                "correct": is_right(answer, row["answer"]),
                **({"text": rationale, "usable": not problem, "problem": problem} if mode == RATIONALE else {}),
            }
        )
    counts = Counter({"rows in": len(rows), "correct": sum(row["correct"] for row in graded)})
    counts.update(row["problem"] for row in graded if row.get("problem"))
    return {**written(folder, graded, counts), "tokens": sum(each["tokens"] for each in completions)}


def is_right(answer: str, gold: str) -> bool:
    """Returns whether an answer is the gold one: as numbers where that is one, else as short texts."""
    grader = texts() if to_decimal(gold) is None else numbers()
    return grader.grade([Job(answer, gold)])[0].correct


def choose_provider(scored: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the provider behind whose rationales the gold answers of the validation rows are likeliest.

    A rationale that cannot be used counts 0, since no answer follows it.

    Args:
      scored: value of the stage that scored the providers' rationales.
      answers: values of the stages in which the providers answered, one each.

    Returns:
      `chosen`, `likelihood` (of each provider), `u_0`, and `agreement` of likelihood with correct answers.
    """
    table = [row for row in opened(scored) if row["u_0"] is not None]
    means = [float(np.mean([row["utilities"][s] or 0.0 for row in table] or [0.0])) for s in range(len(answers))]
    return {
        "chosen": int(np.argmax(means)),
        "likelihood": means,
        "u_0": float(np.mean([row["u_0"] for row in table] or [0.0])),
        "agreement": agreement(opened(scored), [opened(each)["correct"] for each in answers]),
    }


def agreement(table: Sequence[Row], correct: Sequence[Sequence[bool]]) -> dict[str, float]:
    """Compares utilities with whether each provider's own answer, behind its rationale, is right.

    Returns:
      `pairs` of rationales of one question of which one led to a right answer and one did not; `agree`, how many of them
      have the higher utility where the answer is right (equal ones count half); `low` and `high`, the 95 % interval of
      their share, over questions; `right` and `wrong`, the rationales of all questions by their answers; `auc`, the
      probability that of any two of them the one with the right answer has the higher utility.
    """
    scores = pair_scores(table, correct)
    low, high = pass_at_1(scores).interval()
    known = [
        (u, correct[s][number])
        for number, row in enumerate(table)
        for s, u in enumerate(row["utilities"])
        if u is not None
    ]
    right, wrong = ([u for u, is_right in known if is_right == wanted] for wanted in (True, False))
    above = np.subtract.outer(right, wrong) if right and wrong else np.zeros((1, 1))
    return {
        "pairs": sum(map(len, scores)),
        "agree": float(sum(map(sum, scores))),
        "low": low,
        "high": high,
        "right": len(right),
        "wrong": len(wrong),
        "auc": float(np.mean((above > 0) + 0.5 * (above == 0))),
    }


def pair_scores(table: Sequence[Row], correct: Sequence[Sequence[bool]]) -> list[list[float]]:
    """Returns, of each question that has such pairs, 1 for a pair whose right rationale has the higher utility, 0.5 for a tie."""
    found = []
    for number, row in enumerate(table):
        known = [(u, correct[s][number]) for s, u in enumerate(row["utilities"]) if u is not None]
        right, wrong = ([u for u, is_right in known if is_right == wanted] for wanted in (True, False))
        if right and wrong:
            found.append([float((a > b) + 0.5 * (a == b)) for a in right for b in wrong])
    return found
