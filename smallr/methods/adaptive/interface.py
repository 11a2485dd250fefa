"""Defines what an adaptive module is: it decides for each question whether the student answers first or thinks first.

    module = open_adaptive("adapters/router")                         # smallr.methods.adaptive.opening
    decided = module.decide(questions)                                # "answer" or "think" for each, with scores
    answers = module.answer(questions, decided.modes)                 # both kinds in one batch
    forced = module.answer(questions, ["think"] * len(questions))     # always-pre; ["answer"] is always-post
    chance = at_random(questions, share=decided.share, seed=0)        # random at the same rate

    student = open_student("models/pre-and-post")                     # without any module: answer() alone
    values = student.answer_nll(questions, golds, rationales=None)    # nats a token of given answers

Chen et al., arXiv 2404.09170, say that a soft-prompt module perceives a question's complexity and has the student answer
first or think first. How it is trained and read is smallr's own, see docs/methods/adaptive.md.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Literal, Protocol

Mode = Literal["answer", "think"]
MODES: tuple[Mode, ...] = ("answer", "think")


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Holds what was decided for some questions, in their order.

    Attributes:
      modes: "answer" (post-thinking: the answer comes first) or "think" (pre-thinking).
      scores: how much speaks for thinking, in nats; a question is thought about where it is above the module's
        threshold (0 unless set). Router: log-prob of the token for thinking minus that for answering. Mode prompts:
        NLL a token of the student's own answer given first, minus that of the answer after thinking. Unsure: the
        first of these alone. NaN where nobody asked a model.
      tokens: written to come to each decision: none for a router, all attempts for the others.
      seconds: wall-clock time of the whole call, compilation included where a program is new.
      answers: of the chosen modes, where they had to be written to decide (mode prompts and unsure, greedy); their tokens
        are among `tokens`, and there is no need to call `answer`.
    """

    modes: tuple[Mode, ...]
    scores: tuple[float, ...]
    tokens: tuple[int, ...]
    seconds: float
    answers: tuple[Answer, ...] | None = None

    @property
    def share(self) -> float:
        """Returns the share of questions that are thought about first."""
        return sum(mode == "think" for mode in self.modes) / max(len(self.modes), 1)


@dataclasses.dataclass(frozen=True)
class Answer:
    """Holds one question answered.

    Attributes:
      mode: in which the student was asked.
      answer: the text on its side of the separator, stripped; empty where the student did not come to it.
      rationale: the other side; empty where decoding stopped after the answer.
      text: all that was written, without end tokens.
      tokens: written, the separator's and the end token included.
      prompt_tokens: read, soft tokens included.
      complete: the answer ended by itself: with the separator or an end token, not at the limit.
      error: why there is no answer (a question longer than the context); then the texts are empty.
    """

    mode: Mode
    answer: str
    rationale: str
    text: str
    tokens: int
    prompt_tokens: int
    complete: bool
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers in the order of the questions, and the wall-clock seconds of the whole call."""

    items: tuple[Answer, ...]
    seconds: float

    @property
    def tokens_per_answer(self) -> float:
        """Returns the mean of the tokens written."""
        return sum(item.tokens for item in self.items) / max(len(self.items), 1)


class Answering(Protocol):
    """Answers in a mode that is given: a student, alone or under a module."""

    def answer(
        self,
        questions: Sequence[str],
        modes: Sequence[Mode],
        *,
        early_stop: bool = True,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> Answers:
        """Answers each question in its mode, all in one continuous batch.

        Args:
          questions: texts, as in the training rows.
          modes: one for each question.
          early_stop: stop at the separator where the answer comes first. Without it the rationale is written too; the
            answer is the same.
          max_tokens: of a completion.
          temperature: 0 takes the likeliest token.
          seed: of the draws.
        """
        ...

    def answer_nll(
        self, questions: Sequence[str], answers: Sequence[str], rationales: Sequence[str] | None = None
    ) -> list[float]:
        """Computes the NLL in nats a token of given answers: their log-perplexity. NaN where a row is longer than the context.

        Args:
          questions: texts.
          answers: texts; only their own tokens count, not the separator or the end behind them.
          rationales: with these the answer stands behind its rationale (mode "think"); without, it comes first.
        """
        ...


class Adaptive(Answering, Protocol):
    """Puts a module over a frozen student: `Router` or `ModePrompts`.

    Attributes:
      threshold: score above which a question is thought about first; 0 by default, and may be set.
    """

    threshold: float

    def decide(self, questions: Sequence[str]) -> Decisions:
        """Decides for each question, all in one batch.

        Raises:
          UserError: a question that does not fit the context.
        """
        ...


def always(questions: Sequence[str], mode: Mode) -> Decisions:
    """Returns the same mode for all."""
    return _unasked([mode] * len(questions))


def at_random(questions: Sequence[str], *, share: float, seed: int = 0) -> Decisions:
    """Thinks about exactly round(share * number) of the questions, drawn without a look at them."""
    chosen = set(random.Random(seed).sample(range(len(questions)), round(share * len(questions))))
    return _unasked(["think" if i in chosen else "answer" for i in range(len(questions))])


def _unasked(modes: Sequence[Mode]) -> Decisions:
    return Decisions(tuple(modes), (float("nan"),) * len(modes), (0,) * len(modes), 0.0)
