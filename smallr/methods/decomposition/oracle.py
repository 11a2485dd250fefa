"""Plays the agents on the built-in problems: a teacher with errors at chosen rates, and a solver that makes none.

They are asked by the same prompts as any model and find the problem behind the last "Problem:". So generation and
evaluation run exactly, offline and at no cost.
"""

from __future__ import annotations

import dataclasses
import random

from smallr.data.builtin.lookup import find_problem
from smallr.data.builtin.problems import Problem
from smallr.language.completing import CompletingModel
from smallr.methods.decomposition.arithmetic import NOT_TOLD, answers_of, final_of, questions_of
from smallr.methods.decomposition.names import ANSWERER, JUDGE, QUESTIONER, SOLVER
from smallr.methods.decomposition.raw import numbered, read_numbered
from smallr.sampling.requests import Request, Result, Sample, Usage

CALCULATOR = "calculator"  # oracle:calculator is the solver, oracle:arithmetic the teacher


@dataclasses.dataclass(frozen=True)
class OracleOptions:
    """Says how often the teacher errs, as shares from 0 to 1.

    Attributes:
      omit: a sub-question is left out.
      repeat: one is asked again at once.
      useless: one is followed by a question about a number that the problem says.
      slip: the answers to a set come to a wrong final answer.
      verdict_error: a verdict on a sub-question is the opposite.
      seed: of all draws.
    """

    omit: float = 0.0
    repeat: float = 0.0
    useless: float = 0.0
    slip: float = 0.0
    verdict_error: float = 0.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class CalculatorOptions:
    """Has no options: the calculator never errs."""


class Oracle(CompletingModel):
    """Answers as one agent.

    Args:
      role: one of `names`.
      options: its rates of errors.
      name: what it is reported as.
    """

    def __init__(self, role: str, options: OracleOptions = OracleOptions(), name: str = "oracle:arithmetic"):
        super().__init__(name)
        self._role, self._options = role, options
        self._reply = {
            QUESTIONER: self._ask,
            ANSWERER: self._solve,
            SOLVER: self._solve,
            JUDGE: self._judge,
        }[role]

    async def _answer(self, request: Request, sample: int = 0) -> Result:
        text = "\n".join(message["content"] for message in request.messages) or str(request.prompt)
        question, _, rest = text.rpartition("Problem:")[2].strip().partition("\n\n")
        problem = find_problem(question)
        if problem is None:
            return Result(error=f"400: the oracle does not know this problem: {question[:200]!r}")
        texts = []
        for index in range(request.params.n):
            rng = random.Random(f"{self._options.seed} {self._role} {text} {request.params.seed} {index}")
            texts.append(self._reply(problem, read_numbered(rest), rng))
        samples = tuple(Sample(text, "stop") for text in texts)
        return Result(samples, Usage(len(text.split()), sum(len(text.split()) for text in texts)))

    async def _release(self) -> None:
        """Holds nothing."""

    def _ask(self, problem: Problem, _: list[str], rng: random.Random) -> str:
        options, asked = self._options, []
        steps = questions_of(problem)
        kept = [text for text in steps if rng.random() >= options.omit] or steps[-1:]
        for text in kept:
            asked.append(text)
            if rng.random() < options.repeat:
                asked.append(text)
            if rng.random() < options.useless:
                asked.append(f"Does the problem say {rng.choice(list(problem.givens.values()))}?")
        return numbered(asked)

    def _solve(self, problem: Problem, sub_questions: list[str], rng: random.Random) -> str:
        answers = answers_of(problem, sub_questions)
        final = final_of(problem, answers)
        if final is not None and rng.random() < self._options.slip:
            final += rng.choice((-2, -1, 1, 2, 10))
        lines = [
            f"A{number}: {answer.line.equation if answer.line else NOT_TOLD}"
            for number, answer in enumerate(answers, 1)
        ]
        return "\n".join([*lines, "", f"Final answer: {'unknown' if final is None else final}"])

    def _judge(self, problem: Problem, sub_questions: list[str], rng: random.Random) -> str:
        verdicts = [answer.is_useful for answer in answers_of(problem, sub_questions)]
        said = [useful != (rng.random() < self._options.verdict_error) for useful in verdicts]
        return numbered(["Yes" if useful else "No" for useful in said])
