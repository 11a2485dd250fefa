"""Questions that cannot be asked cost their own line alone."""

from __future__ import annotations

import io
import json
import math

import pytest

from smallr.core.errors import UserError
from smallr.methods.adaptive.asking import ask, write_answers
from smallr.methods.adaptive.interface import Answer, Answers, Decisions

QUESTIONS = ["2+2?", "cut \ud83d", "long " * 50, "3+3?", "\udc00"]


class Module:
    """Decides by length; a text beyond 100 characters does not fit, as in a model's context."""

    threshold = 0.0

    def decide(self, questions):
        if any(len(question) > 100 for question in questions):
            raise UserError("question 0: it does not fit")
        "".join(questions).encode()
        scores = tuple(float(len(question) - 4) for question in questions)
        modes = tuple("think" if score > 0 else "answer" for score in scores)
        return Decisions(modes, scores, (2,) * len(questions), 1.0)

    def answer(self, questions, modes, **_):
        "".join(questions).encode()
        items = [Answer(mode, question[:1], "", question, 1, 2, True) for question, mode in zip(questions, modes)]  # noqa: B905
        return Answers(tuple(items), 1.0)


@pytest.mark.parametrize("mode", ["auto", "answer", "think", "random"])
def test_a_question_that_cannot_be_asked_has_an_error_and_the_others_their_answers(mode):
    decided, answers = ask(Module(), QUESTIONS, mode=mode)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    write_answers(QUESTIONS, decided, answers, out)
    out.seek(0)
    lines = [json.loads(line) for line in out]
    assert [line["question"] for line in lines] == QUESTIONS
    assert [line["answer"] for line in lines][::3] == ["2", "3"]
    assert "U+D83D" in lines[1]["error"]
    assert "U+DC00" in lines[4]["error"]
    assert lines[1]["score"] is None
    assert lines[2].get("error", "") == ("question 0: it does not fit" if mode == "auto" else "")


def test_good_questions_are_asked_all_at_once():
    decided, answers = ask(Module(), ["2+2?", "33+3?"])
    assert decided == Decisions(("answer", "think"), (0.0, 1.0), (2, 2), 1.0)
    assert [answer.answer for answer in answers] == ["2", "3"]


def test_nothing_can_be_asked():
    decided, answers = ask(Module(), ["\ud83d", "x" * 200])
    assert [bool(answer.error) for answer in answers] == [True, True]
    assert all(math.isnan(score) for score in decided.scores)
