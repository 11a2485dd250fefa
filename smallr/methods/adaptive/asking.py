"""Asks questions through a module, in a given mode, and writes the results as lines of JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TextIO

from smallr.core.errors import UserError
from smallr.data.files import lone_surrogate
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
    """Decides and answers. A question that cannot be asked has an error in place of its answer.

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
    halves = [lone_surrogate(question) for question in questions]
    errors = {i: f"the question holds {half}, half of a surrogate pair" for i, half in enumerate(halves) if half}
    good = [i for i in range(len(questions)) if i not in errors]
    if mode == "auto":
        good, decided = _decided(module, questions, good, errors)
    elif mode == "random":
        decided = at_random([questions[i] for i in good], share=share, seed=seed or 0)
    else:
        decided = always([questions[i] for i in good], "think" if mode == "think" else "answer")
    options = {"early_stop": early_stop, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    answers = module.answer([questions[i] for i in good], decided.modes, **options).items if good else ()
    if not errors:
        return decided, answers
    found = {i: (*rest,) for i, *rest in zip(good, decided.modes, decided.scores, decided.tokens, answers, strict=True)}
    for index, error in errors.items():
        found[index] = ("answer", math.nan, 0, Answer("answer", "", "", "", 0, 0, False, error))
    modes, scores, tokens, answers = zip(*(found[i] for i in range(len(questions))), strict=True)
    return Decisions(modes, scores, tokens, decided.seconds), answers


def _decided(
    module: Adaptive, questions: Sequence[str], indices: Sequence[int], errors: dict[int, str]
) -> tuple[list[int], Decisions]:
    """Decides for some questions; where one of them cannot be asked, for each alone, and adds its error."""
    try:
        return list(indices), module.decide([questions[i] for i in indices])
    except UserError:
        decisions = {}
        for index in indices:
            try:
                decisions[index] = module.decide([questions[index]])
            except UserError as error:
                errors[index] = str(error)
    found = list(decisions.values())
    modes, scores, tokens = (tuple(getattr(each, name)[0] for each in found) for name in ("modes", "scores", "tokens"))
    return list(decisions), Decisions(modes, scores, tokens, sum(each.seconds for each in found))


def write_answers(questions: Sequence[str], decided: Decisions, answers: Sequence[Answer], out: TextIO) -> None:
    """Writes a line for each question: the fields of its `Answer`, with `score` and `decision_tokens` of the decision."""
    for question, score, tokens, answer in zip(questions, decided.scores, decided.tokens, answers, strict=True):
        fields = dataclasses.asdict(answer)
        fields |= {"score": None if math.isnan(score) else score, "decision_tokens": tokens}
        if not answer.error:
            del fields["error"]
        write_row({"question": question, **fields}, out)
