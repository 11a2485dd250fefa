"""Asks and answers sub-questions of the built-in problems, whose steps are known.

The sub-question of a step is the sentence that states it, with "how many" for its equation: "The trays hold how many rolls
in all?" It is well posed where its operands stand in the problem or were the results of sub-questions before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from smallr.data.builtin.dataset import normalise
from smallr.data.builtin.problems import Line, Problem, Step, solve

NOT_TOLD = "This cannot be told."


def question_of(step: Step) -> str:
    """Returns the sub-question of a step."""
    text = step.says.format("how many").rstrip(".")
    return f"{text[0].upper()}{text[1:]}?"


def questions_of(problem: Problem) -> list[str]:
    """Returns the sub-questions of all steps in order."""
    return [question_of(step) for step in problem.steps]


@dataclasses.dataclass(frozen=True)
class Answer:
    """Says what a sub-question comes to.

    Attributes:
      line: the step that it asks for, with its numbers; None if it is not well posed.
      is_repeated: whether an earlier one has asked the same.
    """

    line: Line | None
    is_repeated: bool = False

    @property
    def is_useful(self) -> bool:
        """Returns whether it is well posed and new."""
        return self.line is not None and not self.is_repeated


def answers_of(problem: Problem, sub_questions: Sequence[str]) -> list[Answer]:
    """Answers sub-questions in order; each right exactly if it is well posed."""
    lines = solve(problem)
    assert lines is not None
    by_text = {normalise(question_of(line.step)): line for line in lines}
    known, found = set(problem.givens), []
    for text in sub_questions:
        line = by_text.get(normalise(text))
        sides = (line.step.left, line.step.right) if line else ()
        if line is None or any(isinstance(side, str) and side not in known for side in sides):
            found.append(Answer(None))
        else:
            found.append(Answer(line, line.step.name in known))
            known.add(line.step.name)
    return found


def final_of(problem: Problem, answers: Sequence[Answer]) -> int | None:
    """Returns the answer of the problem; None if its last step was not asked for, or could not be told."""
    found = {answer.line.step.name: answer.line.value for answer in answers if answer.line}
    return found.get(problem.steps[-1].name)
