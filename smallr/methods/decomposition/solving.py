"""Measures a student: it writes sub-questions, a solver answers them, and its final answer is right or not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.agents.agent import AgentClient, UnusableError
from smallr.agents.annotation import annotate
from smallr.agents.prompts import Prompts
from smallr.agents.usage import Usage
from smallr.agents.workers import FIELDS
from smallr.core.errors import UserError
from smallr.core.journal import Journal
from smallr.core.stages import Stages, Stopped
from smallr.data.builtin.lookup import find_problem
from smallr.data.errors import DataError
from smallr.methods.decomposition import config as fields
from smallr.methods.decomposition.agents import open_agents
from smallr.methods.decomposition.answers import answer_check
from smallr.methods.decomposition.arithmetic import questions_of
from smallr.methods.decomposition.metrics import is_repeated, score_texts
from smallr.methods.decomposition.names import SOLVER
from smallr.methods.decomposition.problems import ProblemRow, load_problems
from smallr.methods.decomposition.prompts import load_prompts
from smallr.methods.decomposition.raw import numbered
from smallr.methods.decomposition.replies import read_final_answer
from smallr.methods.decomposition.rows import load_decompositions
from smallr.methods.decomposition.solve_report import write_solve_report
from smallr.methods.decomposition.student import Student, check_student, key_of, model_identity, write_sub_questions

NOT_ASKED = "no sub-questions"


@dataclasses.dataclass(frozen=True)
class Solver:
    """Describes a solver and its problems, as an input of a stage."""

    config: ConfigDict
    prompts: Prompts
    problems: Sequence[ProblemRow]

    @property
    def digest(self) -> str:
        """Returns a digest of all that the replies depend on, besides the sub-questions."""
        identity = fields.identity(self.config, (SOLVER,), self.prompts.digest)
        model, questions = model_identity(self.config.solver.model), [row.question for row in self.problems]
        return hashlib.sha256(json.dumps([identity, model, questions], default=str).encode()).hexdigest()[:16]


def run_solving(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """Measures a student, or goes on with the run in `folder`.

    Args:
      config: of `config.solving`.
      folder: gets a folder for each stage, solved.jsonl, report.json and report.md.

    Returns:
      The report, as it stands in report.json.

    Raises:
      Stopped: it was interrupted, or requests got no reply; the same command goes on.
      UserError: anything else that the user must change, e.g. a solver that never gives a final answer.
    """
    fields.check(config)
    check_student(config)
    problems = load_problems(config, fields.markers_of(config))
    prompts, stages = load_prompts(config.prompts), Stages(folder)
    written = stages.do("sub_questions", write_sub_questions, Student(config, problems.rows))
    solved = None
    if config.solver.model:
        solved = stages.do("answers", solve, Solver(config, prompts, problems.rows), written)
    stages.run()
    sub_questions = [row["sub_questions"] for row in stages.value(written)]
    replies = stages.value(solved) if solved else {"rows": [], "usage": {}}
    rows = score(problems.rows, sub_questions, replies["rows"], references_of(config, problems.rows), config.parser)
    cut = sum(row["finish_reason"] == "length" for row in stages.value(written))
    return write_solve_report(folder, config, rows, problems.left_out, cut, replies["usage"])


def solve(folder: Path, solver: Solver, written: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Gives the solver's reply to the sub-questions of each problem, or why there is none, and what was used.

    Raises:
      Stopped: some problems got no reply.
      UserError: no reply at all has a final answer.
    """
    config, journal = solver.config, Journal(folder / "journal.jsonl", FIELDS)
    asked = {
        row.id: numbered(each["sub_questions"])
        for row, each in zip(solver.problems, written, strict=True)
        if each["sub_questions"]
    }
    rows = [row for row in solver.problems if row.id in asked]

    async def answer(row: ProblemRow, client: AgentClient, _: Usage) -> dict[str, Any]:
        prompt = solver.prompts.render("answers", problem=row.question, questions=asked[row.id])
        try:
            reply, problem = await client.read(SOLVER, prompt, read_final_answer)
        except UnusableError as error:
            reply, problem = None, ": ".join(filter(None, error.args))
        return {"reply": reply or "", "problem": "" if reply else problem}

    with open_agents(config, (SOLVER,)) as agents:
        unanswered = annotate(rows, answer, config, agents, journal, title="answers")
    if unanswered:
        raise Stopped(f"{len(unanswered)} problems got no reply ({unanswered[0]}); the same command asks them again")
    total = Usage()
    for row in rows:
        total.add(journal[row.id]["usage"])
    _check_answers(config, [journal[row.id]["row"] for row in rows])
    nothing = {"reply": "", "problem": NOT_ASKED}
    replies = [journal[row.id]["row"] if row.id in asked else nothing for row in solver.problems]
    return {"rows": replies, "usage": total.by_role((SOLVER,))[SOLVER]}


def _check_answers(config: ConfigDict, replies: Sequence[Mapping[str, str]]) -> None:
    if replies and all(reply["problem"] for reply in replies):
        raise UserError(
            f"config.solver.model = {config.solver.model}: none of {len(replies)} replies can be used "
            f"({replies[0]['problem'][:300]}); it must end its replies with a line 'Final answer: …'. Choose a model that "
            "follows instructions, or another prompt (config.prompts.answers)"
        )


def references_of(config: ConfigDict, problems: Sequence[ProblemRow]) -> list[Sequence[str] | None]:
    """Returns the reference sub-questions of each problem, the first ones where there are several; None without any.

    Raises:
      DataError: no problem has any.
    """
    rows = config.reference.rows
    if not rows:
        return [None] * len(problems)
    if rows == "builtin":
        found = [find_problem(row.question) for row in problems]
        references = [questions_of(problem) if problem else None for problem in found]
    else:
        loaded = load_decompositions(rows, config.reference.split, fields.markers_of(config)).rows
        by_key = {key_of(row.question): row.sub_questions for row in reversed(loaded)}
        references = [by_key.get(key_of(row.question)) for row in problems]
    if not any(references):
        raise DataError(f"config.reference.rows = {rows}: it has none of the {len(problems)} problems of config.data")
    return references


def score(
    problems: Sequence[ProblemRow],
    sub_questions: Sequence[Sequence[str]],
    replies: Sequence[Mapping[str, str]],
    references: Sequence[Sequence[str] | None],
    parser: str,
) -> list[dict[str, Any]]:
    """Gives a row for each problem, in the layout of the released responses, with its scores; None where there is none."""
    rows = []
    correct: list[bool | None] = [None] * len(problems)
    if replies:
        with answer_check(parser) as check:
            verdicts = check.check([reply["reply"] for reply in replies], [row.answer for row in problems])
        correct = [bool(verdict) for verdict in verdicts]
    for number, (problem, written, reference) in enumerate(zip(problems, sub_questions, references, strict=True)):
        texts = score_texts(written, reference) if reference else None
        reply = replies[number] if replies else {"reply": "", "problem": ""}
        rows.append(
            {
                "problem": problem.question,
                "questions": numbered(written),
                "answers": reply["reply"],
                "gold": problem.answer,
                "correct": correct[number],
                "no_answer": reply["problem"],
                "sub_questions": len(written),
                "granularity": texts.granularity if texts else None,
                "bleu": texts.bleu if texts else None,
                "repeated": is_repeated(written),
            }
        )
    return rows
