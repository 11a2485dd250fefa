"""Answers word problems by written-out arithmetic: the second task, on the built-in data."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from fractions import Fraction

from smallr.agents.prompts import Prompts
from smallr.data.builtin.dataset import make_questions
from smallr.data.builtin.reading import equations
from smallr.evals.extraction.places import boxed
from smallr.methods.planner.prompts import make_draft
from smallr.methods.planner.task import Candidate, Outcome, Problem, Write, gather

_SENTENCE = re.compile(r"[^.\n]*(?:[.\n]+\s*|\Z)")


class ArithmeticTask:
    r"""Proposes, executes and compares rationales that end in `\boxed{answer}`.

    To execute one is to calculate each of its equations; one that does not hold is an error, as it is in a program.

    Args:
      prompts: of the method.
    """

    noun, context_title = "solution", "Context"

    def __init__(self, prompts: Prompts):
        self._prompts = prompts

    def propose(
        self, problem: Problem, write: Write, count: int, *, prefix: str = "", rejected: str = "", round: int = 0
    ) -> list[Candidate]:
        """See `Task.propose`."""
        options = {"prefix": prefix, "rejected": rejected, "round": round}
        return self.candidates(problem, write(problem, make_draft(self, self._prompts, problem, count, **options)))

    def candidates(self, problem: Problem, texts: Sequence[str]) -> list[Candidate]:
        """Joins texts that differ in spaces alone."""
        return gather(texts, lambda text: " ".join(text.split()))

    def check(self, plan: str) -> str:
        """See `Task.check`."""
        return "" if boxed(plan) else "there is no \\boxed answer"

    def execute(self, jobs: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Outcome]]:
        """See `Task.execute`."""
        return [[self._execute(plan) for plan in plans] for _, plans in jobs]

    def _execute(self, plan: str) -> Outcome:
        if refusal := self.check(plan):
            return Outcome(error=refusal, kind="no answer")
        for text, values in equations(plan):
            if None in values or len(set(values)) != 1:
                return Outcome(error=f"{text} does not hold", kind="equation")
        return _answer(boxed(plan))

    def gold(self, problems: Sequence[Problem]) -> list[Outcome]:
        """See `Task.gold`; here it is the answer."""
        return [_answer(problem.gold) for problem in problems]

    def equal(self, found: Outcome, wanted: Outcome) -> bool:
        """Whether two answers are the same number."""
        return found.value == wanted.value

    def next_step(self, plan: str, prefix: str) -> str:
        """See `Task.next_step`; a step is a sentence."""
        for match in _SENTENCE.finditer(plan):
            if match.end() > len(prefix) + 1:
                return plan[: match.end()].rstrip()
        return plan


def builtin_problems(count: int, seed: int = 0) -> tuple[list[Problem], list[list[Candidate]]]:
    """Makes problems with candidates: right rationales, and wrong ones whose slips are carried through, in random order."""
    problems, candidates = [], []
    for number, question in enumerate(make_questions(seed, 1, count)["test"]):
        texts = [question.fitted, question.unfitted, *(wrong.text for wrong in question.incorrect)]
        random.Random(f"{seed} {number}").shuffle(texts)
        problems.append(Problem(f"test-{number}", question.problem.question, gold=str(question.answer)))
        candidates.append(gather(texts, lambda text: " ".join(text.split())))
    return problems, candidates


def _answer(text: str) -> Outcome:
    try:
        value = Fraction(text.replace(",", "").strip())
    except (ValueError, ZeroDivisionError):
        return Outcome(error=f"the answer {text!r} is no number", kind="no answer")
    return Outcome(value, str(value))
