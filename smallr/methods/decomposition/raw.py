r"""Reads and writes what a teacher wrote, in the published layout of raw rows, and makes decompositions of it.

    {"problem": "…", "questions": [k texts "Q1: …\nQ2: …"], "answers": [k texts "A1: …\n\nFinal answer: …"],
     "feedback": [k lists of texts "Q1: Yes\nQ2: No"], "answer": "#### 18"}

The published test half has no feedback.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Features, List, Value

from smallr.data.errors import DataError, shorten
from smallr.data.sources import load_part
from smallr.methods.decomposition.answers import AnswerCheck, gold_number, published_number
from smallr.methods.decomposition.rows import BadRowError, Decomposition, parse_row
from smallr.methods.decomposition.sequence import PUBLISHED, Markers

_TEXT = Value("string")
FEATURES = Features(
    {
        "problem": _TEXT,
        "questions": List(_TEXT),
        "answers": List(_TEXT),
        "feedback": List(List(_TEXT)),
        "answer": _TEXT,
    }
)
_NUMBERED = re.compile(r"Q\d+: (.*)")


@dataclasses.dataclass(frozen=True)
class RawRow:
    """Holds a problem with k sets of sub-questions, as texts.

    Attributes:
      problem, answer: the problem and its gold answer.
      questions: k texts.
      answers: of each set.
      feedback: texts of verdicts on each set; empty if nobody was asked.
    """

    problem: str
    answer: str
    questions: tuple[str, ...]
    answers: tuple[str | None, ...]
    feedback: tuple[tuple[str, ...], ...] = ()

    def published(self) -> dict[str, Any]:
        """Returns the row in the published layout."""
        feedback = [list(texts) for texts in self.feedback]
        return {
            "problem": self.problem,
            "questions": list(self.questions),
            "answers": list(self.answers),
            "feedback": feedback,
            "answer": self.answer,
        }


def load_raw(source: str, split: str = "train") -> list[RawRow]:
    """Reads raw rows from anything that training reads rows from.

    Raises:
      DataError: no such source, split or column, or a row whose lists are not of one length.
    """
    loaded, _, numbers = load_part(source, split)
    needed = [name for name in FEATURES if name != "feedback"]
    if missing := [name for name in needed if name not in loaded.column_names]:
        raise DataError(
            f"{source}: no column {missing[0]!r}; raw rows have the columns {', '.join(FEATURES)} "
            f"(present {', '.join(loaded.column_names)})"
        )
    return [_parse(row, f"{source}, row {number}") for row, number in zip(loaded, numbers, strict=True)]


def _parse(row: Mapping[str, Any], where: str) -> RawRow:
    questions, answers, feedback = row["questions"], row["answers"], row.get("feedback") or ()
    for name, value in (("questions", questions), ("answers", answers), ("feedback", feedback)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise DataError(f"{where}, column {name!r}: expected a list, found {shorten(value)}")
    for name, value in (("answers", answers), ("feedback", feedback)):
        if len(value) != len(questions) and (value or name == "answers"):
            raise DataError(f"{where}, column {name!r}: {len(value)} values for {len(questions)} sets of sub-questions")
    return RawRow(row["problem"], str(row["answer"]), tuple(questions), tuple(answers), tuple(map(tuple, feedback)))


def numbered(sub_questions: Sequence[str]) -> str:
    """Returns sub-questions one a line, as "Q1: …"."""
    return "\n".join(f"Q{number}: {text}" for number, text in enumerate(sub_questions, 1))


def read_numbered(text: str) -> list[str]:
    """Returns the sub-questions of lines "Qn: …" as the released code does; other lines are none."""
    return [match[1] for line in text.split("\n") if (match := _NUMBERED.match(line))]


def usefulness_of(feedback: Sequence[str], count: int) -> tuple[float, ...]:
    """Returns the share of texts that say yes in the line of each sub-question, as the released code counts them."""
    if not feedback:
        return ()
    lines = [text.lower().split("\n") for text in feedback]
    return tuple(sum("yes" in text[j] for text in lines if j < len(text)) / len(feedback) for j in range(count))


def decompositions(
    rows: Sequence[RawRow], check: AnswerCheck, markers: Markers = PUBLISHED, *, published: bool = False
) -> tuple[list[Decomposition], list[str]]:
    """Makes a decomposition of each set of sub-questions.

    Args:
      rows: raw.
      check: of final answers; a set whose reply has none counts as wrong.
      markers: which no sub-question may hold.
      published: read gold numbers by the released code's parser.

    Returns:
      The decompositions, and what is wrong with each set that is left out.
    """
    replies = [reply for row in rows for reply in row.answers]
    verdicts = iter(check.check(replies, [row.answer for row in rows for _ in row.answers]))
    read_gold = published_number if published else gold_number
    found, left_out = [], []
    for number, row in enumerate(rows):
        gold = read_gold(row.answer)
        for k, text in enumerate(row.questions):
            correct, sub_questions = next(verdicts), read_numbered(text)
            rewards = {
                "answer_correctness": float(bool(correct)),
                "usefulness": usefulness_of(row.feedback[k] if row.feedback else (), len(sub_questions)),
            }
            made = {"question": row.problem, "answers": sub_questions, "rewards": rewards, "true_answer": gold}
            try:
                found.append(parse_row(made, markers))
            except BadRowError as error:
                left_out.append(f"raw row {number}, set {k}, {error}")
    return found, left_out
