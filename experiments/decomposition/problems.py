"""Draws built-in problems, has the oracle teacher decompose them imperfectly, and grades sub-questions by the calculator."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.crv.questions import Questions
from smallr.data.builtin.lookup import find_problem
from smallr.data.builtin.problems import Problem
from smallr.methods.decomposition.arithmetic import answers_of, final_of, questions_of
from smallr.methods.decomposition.metrics import score_texts
from smallr.methods.decomposition.names import JUDGE, QUESTIONER
from smallr.methods.decomposition.oracle import Oracle, OracleOptions
from smallr.methods.decomposition.raw import numbered, read_numbered, usefulness_of
from smallr.sampling.requests import Request, SamplingParams

SETS, VERDICTS = 3, 3  # decompositions of a training problem, verdicts on each sub-question, as published


@dataclasses.dataclass(frozen=True)
class Source:
    """Says what problems are drawn, and how imperfect their teacher is.

    Attributes:
      templates, largest: see `Questions`.
      questions, held_out: training and test problems; the test problems are the same for every seed.
      omit, repeat, useless, verdict_error: rates of the teacher's errors, see `OracleOptions`.
    """

    templates: tuple[str, ...]
    largest: int
    questions: int
    held_out: int
    omit: float
    repeat: float
    useless: float
    verdict_error: float


def data_of(folder: Path, source: Source, seed: int) -> dict[str, Any]:
    """Returns training rows in the published layout, and test problems with the teacher's and the perfect sub-questions."""
    del folder
    questions = Questions(source.templates, source.largest)
    held_out = questions.draw("held out", source.held_out)
    drawn = questions.draw(f"decomposition {seed}", source.questions, held_out)
    errors = {name: getattr(source, name) for name in ("omit", "repeat", "useless", "verdict_error")}
    options = OracleOptions(**errors, seed=seed)
    test = [question.problem for question in held_out]
    rows = [
        {"question": problem.question, "answers": sets[0], "reference": questions_of(problem)}
        for problem, sets in zip(test, sub_questions_of(test, options, 1), strict=True)
    ]
    return {"train": taught([question.problem for question in drawn], options), "test": rows}


def sub_questions_of(problems: Sequence[Problem], options: OracleOptions, sets: int) -> list[list[list[str]]]:
    """Asks the teacher for sets of sub-questions of each problem."""
    params = SamplingParams(n=sets)
    asked = [Request(prompt=f"Problem: {problem.question}", params=params) for problem in problems]
    with contextlib.closing(Oracle(QUESTIONER, options)) as teacher:
        return [[read_numbered(each.text) for each in result.samples] for result in teacher.complete_sync(asked)]


def taught(problems: Sequence[Problem], options: OracleOptions) -> list[dict[str, Any]]:
    """Returns the teacher's sets with correctness and usefulness, in the published layout."""
    sets = [
        (problem, each)
        for problem, found in zip(problems, sub_questions_of(problems, options, SETS), strict=True)
        for each in found
    ]
    params = SamplingParams(n=VERDICTS)
    asked = [
        Request(prompt=f"Problem: {problem.question}\n\n{numbered(texts)}", params=dataclasses.replace(params, seed=i))
        for i, (problem, texts) in enumerate(sets)
    ]
    with contextlib.closing(Oracle(JUDGE, options)) as judge:
        verdicts = [[each.text for each in result.samples] for result in judge.complete_sync(asked)]
    return [
        {
            "question": problem.question,
            "answers": texts,
            "rewards": {
                "answer_correctness": float(is_solved(problem, texts)),
                "usefulness": list(usefulness_of(said, len(texts))),
            },
            "true_answer": float(final_of(problem, answers_of(problem, questions_of(problem)))),
        }
        for (problem, texts), said in zip(sets, verdicts, strict=True)
    ]


def is_solved(problem: Problem, sub_questions: Sequence[str]) -> bool:
    """Returns whether the calculator comes to the answer by way of sub-questions."""
    perfect = final_of(problem, answers_of(problem, questions_of(problem)))
    return final_of(problem, answers_of(problem, sub_questions)) == perfect


def graded(test: Sequence[Mapping[str, Any]], written: Sequence[Sequence[Sequence[str]]]) -> dict[str, Any]:
    """Returns metrics of sub-questions, and for each problem the share of its samples that solve it.

    Args:
      test: rows of `data_of`.
      written: sets of sub-questions of each problem.
    """
    right, texts, counts = [], [], []
    for row, samples in zip(test, written, strict=True):
        problem = find_problem(row["question"])
        right.append(float(np.mean([is_solved(problem, each) for each in samples])))
        texts += [score_texts(each, row["reference"]) for each in samples]
        counts += [len(each) for each in samples]
    return {
        "correct": float(np.mean(right)),
        "granularity": float(np.mean([each.granularity for each in texts])),
        "bleu": float(np.mean([each.bleu for each in texts])),
        "repeated": float(np.mean([each.repeated for each in texts])),
        "count": float(np.mean(counts)),
        "right": right,
    }
