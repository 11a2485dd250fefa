"""Defines the adaptive modules, which are smallr's own: a router, two mode prompts, and confidence alone."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

from smallr.core.errors import UserError
from smallr.data.chat import Renderer
from smallr.data.orders import PROMPT
from smallr.data.templates import Unrenderable
from smallr.methods.adaptive.interface import Answer, Answers, Decisions, Mode
from smallr.methods.adaptive.student import Student


class _Over:
    """Implements what a module leaves to its student."""

    def __init__(self, student: Student, threshold: float):
        self.student, self.threshold = student, threshold

    def answer(self, questions: Sequence[str], modes: Sequence[Mode], **options) -> Answers:
        """Answers as `Answering.answer` says."""
        return self.student.answer(questions, modes, **options)

    def answer_nll(
        self, questions: Sequence[str], answers: Sequence[str], rationales: Sequence[str] | None = None
    ) -> list[float]:
        """Computes `Answering.answer_nll`."""
        return self.student.answer_nll(questions, answers, rationales)

    def _modes(self, scores: Sequence[float]) -> tuple[Mode, ...]:
        return tuple("think" if score > self.threshold else "answer" for score in scores)


class Router(_Over):
    """Puts soft tokens before the question and reads one token: the more probable of two decides which part comes first.

    Args:
      student: whose decoder has the soft tokens.
      soft: ids of the soft tokens.
      choices: ids of the tokens for answering and for thinking.
      prompt: as in training, see `data.chat.choice_pieces`.
      threshold: log-prob of thinking minus that of answering above which the student thinks.
    """

    def __init__(
        self,
        student: Student,
        soft: Sequence[int],
        choices: tuple[int, int],
        *,
        prompt: str = PROMPT,
        threshold: float = 0.0,
    ):
        super().__init__(student, threshold)
        self._soft, self._choices = tuple(map(int, soft)), choices
        self._renderer = Renderer(student.tokenizer, chat=student.chat, prompt=prompt)

    def decide(self, questions: Sequence[str]) -> Decisions:
        """Decides in one pass over soft tokens and question; nothing is written."""
        start = time.perf_counter()
        try:
            texts = [self._renderer.choice_prompt(question.strip()) for question in questions]
        except Unrenderable as error:
            raise UserError(str(error)) from error
        prompts = [[*self._soft, *ids] for ids in self.student.encoded(texts)]
        scorer = self.student.scorer
        for index, prompt in enumerate(prompts):
            if len(prompt) > scorer.max_length:
                raise UserError(
                    f"question {index}: {len(prompt)} tokens are more than the {scorer.max_length} that fit"
                )
        pairs = [(prompt, [choice]) for prompt in prompts for choice in self._choices]
        logps = [logp for logp, _ in scorer.score_tokens(pairs)]
        scores = tuple(think - answer for answer, think in zip(logps[::2], logps[1::2], strict=True))
        return Decisions(self._modes(scores), scores, (0,) * len(scores), time.perf_counter() - start)


class ModePrompts(_Over):
    """Chooses the mode whose own answer the student finds less perplexing; it answers in both to find out.

    Args:
      student: with a soft prompt for each mode.
      threshold: NLL a token of the answer given first, minus that of the answer after thinking, above which the student
        thinks.
      max_tokens: of an attempt.
    """

    def __init__(self, student: Student, *, threshold: float = 0.0, max_tokens: int = 256):
        super().__init__(student, threshold)
        self.max_tokens = max_tokens

    def decide(self, questions: Sequence[str]) -> Decisions:
        """Writes both attempts greedily; a mode that does not come to an answer loses."""
        start, count = time.perf_counter(), len(questions)
        modes: list[Mode] = ["answer"] * count + ["think"] * count
        attempts = self.student.answer([*questions, *questions], modes, max_tokens=self.max_tokens).items
        if failed := [attempt.error for attempt in attempts if attempt.error]:
            raise UserError(failed[0])
        first, second = attempts[:count], attempts[count:]
        nll_first = self.answer_nll(questions, [attempt.answer for attempt in first])
        nll_second = self.answer_nll(questions, [a.answer for a in second], [a.rationale for a in second])
        pairs = zip(_lost(first, nll_first), _lost(second, nll_second), strict=True)
        scores = tuple(0.0 if math.isinf(a) and math.isinf(b) else a - b for a, b in pairs)
        chosen = self._modes(scores)
        answers = tuple(b if mode == "think" else a for mode, a, b in zip(chosen, first, second, strict=True))
        tokens = tuple(a.tokens + b.tokens for a, b in zip(first, second, strict=True))
        return dataclasses.replace(
            Decisions(chosen, scores, tokens, 0.0), answers=answers, seconds=time.perf_counter() - start
        )


class Unsure(_Over):
    """Answers first, and thinks from the beginning where it is not sure of that answer; nothing is trained for it.

    The score is the NLL a token of the answer given first, so exp(-score) is its length-normalised confidence.

    Args:
      student: with or without soft prompts.
      threshold: NLL a token above which the student thinks; by default it does below a confidence of one half.
      max_tokens: of an attempt.
    """

    def __init__(self, student: Student, *, threshold: float = math.log(2), max_tokens: int = 256):
        super().__init__(student, threshold)
        self.max_tokens = max_tokens

    def decide(self, questions: Sequence[str]) -> Decisions:
        """Answers all questions first, greedily, and then those again that are thought about."""
        start = time.perf_counter()
        first = self.student.answer(questions, ["answer"] * len(questions), max_tokens=self.max_tokens).items
        if failed := [attempt.error for attempt in first if attempt.error]:
            raise UserError(failed[0])
        scores = tuple(_lost(first, self.answer_nll(questions, [attempt.answer for attempt in first])))
        modes = self._modes(scores)
        again = [index for index, mode in enumerate(modes) if mode == "think"]
        asked = [questions[index] for index in again]
        thought = self.student.answer(asked, ["think"] * len(again), max_tokens=self.max_tokens).items if again else ()
        answers, tokens = list(first), [attempt.tokens for attempt in first]
        for index, answer in zip(again, thought, strict=True):
            answers[index] = answer
            tokens[index] += answer.tokens
        seconds = time.perf_counter() - start
        return Decisions(modes, scores, tuple(tokens), seconds, answers=tuple(answers))


def _lost(attempts: Sequence[Answer], values: Sequence[float]) -> list[float]:
    """Returns the NLL of each attempt's answer; infinite where it did not come to one, or was cut off in it."""
    return [
        value if attempt.complete and not math.isnan(value) else math.inf
        for attempt, value in zip(attempts, values, strict=True)
    ]
