"""Has the teacher decompose one problem: sub-questions, answers to them, verdicts on them, k times."""

from __future__ import annotations

import dataclasses
from typing import Any

from smallr.agents.agent import AgentClient, UnusableError
from smallr.agents.prompts import Prompts
from smallr.methods.decomposition.names import ANSWERER, JUDGE, QUESTIONER
from smallr.methods.decomposition.problems import ProblemRow
from smallr.methods.decomposition.raw import numbered
from smallr.methods.decomposition.replies import read_answers, read_sub_questions, read_verdicts
from smallr.methods.decomposition.sequence import Markers


@dataclasses.dataclass(frozen=True)
class Method:
    """Holds what all rows of a run share; see `config.py`."""

    prompts: Prompts
    markers: Markers
    sets: int
    verdicts: int


async def decompose(row: ProblemRow, method: Method, client: AgentClient) -> dict[str, Any]:
    """Gives the output row: `sets` in the published layout, and `drops`, why a set is missing.

    Raises:
      UnansweredError, CircuitOpenError: the row is not finished.
    """
    out: dict[str, Any] = {"sets": [], "drops": []}
    for number in range(method.sets):
        try:
            out["sets"].append(await _one_set(row, number, method, client))
        except UnusableError as error:
            reason, detail = error.args
            out["drops"].append({"reason": reason, "detail": detail})
    return out


async def _one_set(row: ProblemRow, number: int, method: Method, client: AgentClient) -> dict[str, Any]:
    """Makes one set; every agent is asked for another draw in each.

    Raises:
      UnusableError: no reply of an agent can be used.
    """
    prompt = method.prompts.render("sub_questions", problem=row.question)
    sub_questions, problem = await client.read(
        QUESTIONER, prompt, lambda sample: read_sub_questions(sample, method.markers), number
    )
    if sub_questions is None:
        raise UnusableError(f"{QUESTIONER}: {problem}", "")
    questions, count = numbered(sub_questions), len(sub_questions)
    prompt = method.prompts.render("answers", problem=row.question, questions=questions)
    answers, problem = await client.read(ANSWERER, prompt, lambda sample: read_answers(sample, count), number)
    if answers is None:
        raise UnusableError(f"{ANSWERER}: {problem}", "")
    feedback = []
    prompt = method.prompts.render("usefulness", problem=row.question, questions=questions)
    for draw in range(method.verdicts):
        verdicts, problem = await client.read(
            JUDGE, prompt, lambda sample: read_verdicts(sample, count), number * method.verdicts + draw
        )
        if verdicts is None:
            raise UnusableError(f"{JUDGE}: {problem}", "")
        feedback.append(numbered(["Yes" if useful else "No" for useful in verdicts]))
    return {"questions": questions, "answers": answers, "feedback": feedback}
