"""Plays agents that know the true steps of the built-in problems, with errors at chosen rates.

They are asked by the same prompts as any model and find question and rationale in them, between `<question>` and
`<rationale>` tags. So the whole pipeline runs, exactly and at no cost, and an experiment can vary how good an agent is.
"""

from __future__ import annotations

import dataclasses
import random
import re

from smallr.agents.oracle import read_oracle
from smallr.data.builtin.lookup import find_problem
from smallr.data.builtin.problems import Problem, solve
from smallr.data.builtin.rationales import STYLES, write
from smallr.data.builtin.reading import cognitive_difficulty, mistake, style, verbosity
from smallr.data.builtin.slips import make_slips
from smallr.language.completing import CompletingModel
from smallr.methods.crv.grades import HIGHEST, Grades
from smallr.methods.crv.names import LABELS, ROLES
from smallr.sampling.requests import Request, Result, Sample, Usage

_GRADED = "cognitive difficulty:"  # in a prompt that asks for grades
_STEPS = {"easy": 1, "hard": -1}  # along STYLES: extend a terse one, simplify an involved one


@dataclasses.dataclass(frozen=True)
class OracleOptions:
    """Says how often each agent errs, as a share of its replies from 0 to 1.

    Attributes:
      critic_error: the critic gives one of the two other labels, or any other grades.
      rethink_error: the rethinker's rationale has a slip that leads to a wrong answer.
      verify_error: the verifier says the opposite.
      student_error: a sample of the student has such a slip.
      seed: of all draws.
    """

    critic_error: float = 0.0
    rethink_error: float = 0.0
    verify_error: float = 0.0
    student_error: float = 0.5
    seed: int = 0


def parse_oracle(spec: str) -> OracleOptions:
    """Reads `oracle:arithmetic?critic_error=0.2&seed=1`.

    Raises:
      UserError: another world, an unknown option, a rate outside of 0 to 1.
    """
    return read_oracle(spec, OracleOptions)


class Oracle(CompletingModel):
    """Answers as one agent.

    Args:
      role: one of `names.ROLES`.
      options: its rates of errors.
      name: what it is reported as.
    """

    def __init__(self, role: str, options: OracleOptions = OracleOptions(), name: str = "oracle:arithmetic"):
        super().__init__(name)
        self._role, self._options = role, options
        self._reply = dict(
            zip(ROLES, (self._critique, self._rethink, self._verify, self._solve, self._inject), strict=True)
        )[role]

    async def _answer(self, request: Request, sample: int = 0) -> Result:
        text = "\n".join(message["content"] for message in request.messages) or str(request.prompt)
        question = _tagged(text, "question") or (request.messages[-1]["content"] if request.messages else text).strip()
        problem, rationale = find_problem(question), _tagged(text, "rationale")
        if problem is None:
            return Result(error=f"400: the oracle does not know this question: {question[:200]!r}")
        if not rationale and self._role != "student":
            return Result(error=f"400: the oracle finds no <rationale> in the {self._role}'s prompt")
        reply = self._grade if self._role == "critic" and _GRADED in text else self._reply
        texts = []
        for index in range(request.params.n):
            rng = random.Random(f"{self._options.seed} {self._role} {text} {request.params.seed} {index}")
            texts.append(reply(problem, rationale, _tagged(text, "label"), rng))
        samples = tuple(Sample(text, "stop") for text in texts)
        return Result(samples, Usage(len(text.split()), sum(len(text.split()) for text in texts)))

    async def _release(self) -> None:
        """Holds nothing."""

    def _critique(self, problem: Problem, rationale: str, _: str, rng: random.Random) -> str:
        label = LABELS[STYLES.index(style(problem, rationale))]
        if rng.random() < self._options.critic_error:
            label = rng.choice([other for other in LABELS if other != label])
        return label

    def _grade(self, problem: Problem, rationale: str, _: str, rng: random.Random) -> str:
        grades = Grades(verbosity(problem, rationale), cognitive_difficulty(problem, rationale))
        if rng.random() < self._options.critic_error:
            others = [Grades(v, c) for v in range(HIGHEST + 1) for c in range(HIGHEST + 1)]
            grades = rng.choice([each for each in others if each != grades])
        return f"verbosity: {grades.verbosity}\ncognitive difficulty: {grades.cognitive_difficulty}"

    def _rethink(self, problem: Problem, rationale: str, label: str, rng: random.Random) -> str:
        """Does what it is told: one style up for easy, one down for hard, the same where a mistake is to be mended."""
        index = STYLES.index(style(problem, rationale)) + _STEPS.get(label, 0)
        told = STYLES[min(max(index, 0), len(STYLES) - 1)]
        return _written(told, problem, rng, right=rng.random() >= self._options.rethink_error)

    def _verify(self, problem: Problem, rationale: str, _: str, rng: random.Random) -> str:
        wrong = mistake(problem, rationale)
        if rng.random() < self._options.verify_error:
            wrong = "" if wrong else "A step does not follow."
        return f"VERDICT: incorrect: {wrong}" if wrong else "VERDICT: correct"

    def _solve(self, problem: Problem, _: str, __: str, rng: random.Random) -> str:
        return _written(rng.choice(STYLES), problem, rng, right=rng.random() >= self._options.student_error)

    def _inject(self, problem: Problem, rationale: str, _: str, rng: random.Random) -> str:
        return _written(style(problem, rationale), problem, rng, right=False)


def _written(style: str, problem: Problem, rng: random.Random, *, right: bool) -> str:
    told = problem
    while not right:
        if slips := make_slips(problem, 1, rng):
            (_, told), right = slips[0], True
    lines = solve(told)
    assert lines is not None
    return write(style, told, lines, rng, right=told is problem)


def _tagged(text: str, tag: str) -> str:
    """Finds what stands between the last `<tag>` and its end."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return found[-1].strip() if found else ""
