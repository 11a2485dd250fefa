"""Asks questions through a module, in a given mode, and writes the results as lines of JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TextIO

from smallr.methods.adaptive.interface import Adaptive, Answer, Decisions, always, at_random
from smallr.sampling.files import write_row


def ask(
    module: Adaptive,
    questions: Sequence[str],
    *,
    mode: str = "auto",
    share: float = 0.5,
    early_stop: bool = True,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int | None = None,
) -> tuple[Decisions, tuple[Answer, ...]]:
    """Decides and answers.

    Args:
      module: of the student.
      questions: texts.
      mode: auto asks the module; answer and think are the same for all; random thinks about a share of them.
      share: for random.
      early_stop: see `Answering.answer`.
      max_tokens: likewise.
      temperature: likewise.
      seed: of the draws, and of random modes.
    """
    if mode == "auto":
        decided = module.decide(questions)
    elif mode == "random":
        decided = at_random(questions, share=share, seed=seed or 0)
    else:
        decided = always(questions, "think" if mode == "think" else "answer")
    options = {"early_stop": early_stop, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    return decided, module.answer(questions, decided.modes, **options).items


def write_answers(questions: Sequence[str], decided: Decisions, answers: Sequence[Answer], out: TextIO) -> None:
    """Writes a line for each question: the fields of its `Answer`, with `score` and `decision_tokens` of the decision."""
    for question, score, tokens, answer in zip(questions, decided.scores, decided.tokens, answers, strict=True):
        fields = dataclasses.asdict(answer)
        fields |= {"score": None if math.isnan(score) else score, "decision_tokens": tokens}
        if not answer.error:
            del fields["error"]
        write_row({"question": question, **fields}, out)
