"""Defines what a planner knows of a task: propose, check, execute, equal. Planners know no SQL."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question that plans are made for.

    Attributes:
      id: unique in a run.
      question: in words.
      context: what models are shown besides, such as a schema.
      source: where plans are executed, such as the path of a database.
      gold: a right plan or answer, as the task reads it; empty where none is known.
    """

    id: str
    question: str
    context: str = ""
    source: str = ""
    gold: str = ""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A plan in the task's normal form, and how many proposals came to it."""

    plan: str
    votes: int = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the execution of a plan came to.

    Attributes:
      value: the task's own; `Task.equal` compares two of them.
      preview: the value as a model or a person is shown it.
      error: why it failed, in words; empty if it executed.
      kind: of the error, in a word or two.
      empty: it executed and returned nothing.
    """

    value: Any = None
    preview: str = ""
    error: str = ""
    kind: str = ""
    empty: bool = False


@dataclasses.dataclass(frozen=True)
class Draft:
    """What a generator is asked for.

    Attributes:
      prompt: for a language model.
      prefix: steps that the plan must begin with; a language model goes on from there.
      rejected: a plan that shall be mended.
      count: of proposals.
      round: of the planner; another one draws anew.
    """

    prompt: str
    prefix: str = ""
    rejected: str = ""
    count: int = 1
    round: int = 0


Write = Callable[[Problem, Draft], Sequence[str]]  # a generator: whole plans as text, the prefix included


class Task(Protocol):
    """A kind of problem."""

    noun: str  # what a plan is called in prompts
    context_title: str  # what stands over the context in prompts

    def propose(
        self, problem: Problem, write: Write, count: int, *, prefix: str = "", rejected: str = "", round: int = 0
    ) -> list[Candidate]:
        """Has a generator write plans, and returns the different ones in the order of their first proposal."""
        ...

    def check(self, plan: str) -> str:
        """Says why a text is no plan, without executing it; empty if it is one."""
        ...

    def execute(self, jobs: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[Outcome]]:
        """Executes the plans of each problem. A text that `check` refuses is not executed."""
        ...

    def gold(self, problems: Sequence[Problem]) -> list[Outcome]:
        """Returns what a right plan of each problem comes to."""
        ...

    def equal(self, found: Outcome, wanted: Outcome) -> bool:
        """Whether two outcomes, neither of them an error, are the same answer; `wanted` says whether order counts."""
        ...

    def next_step(self, plan: str, prefix: str) -> str:
        """Returns the plan up to the end of the step behind `prefix`; all of the plan where that is the last one."""
        ...


def gather(texts: Sequence[str], read: Callable[[str], str]) -> list[Candidate]:
    """Returns the different plans that `read` finds in texts, with their votes; a text without a plan gives none."""
    votes: dict[str, int] = {}
    for text in texts:
        if plan := read(text):
            votes[plan] = votes.get(plan, 0) + 1
    return [Candidate(plan, count) for plan, count in votes.items()]


def groups(task: Task, outcomes: Sequence[Outcome]) -> list[int]:
    """Numbers the outcomes so that equal ones share a number; -1 for failures."""
    found: list[int] = []
    firsts: list[int] = []
    for index, outcome in enumerate(outcomes):
        if outcome.error:
            found.append(-1)
            continue
        group = next((g for g, first in enumerate(firsts) if task.equal(outcome, outcomes[first])), len(firsts))
        if group == len(firsts):
            firsts.append(index)
        found.append(group)
    return found
