"""The planner's prompts: what each may hold, and the parts that are in or out."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from smallr.agents.prompts import PromptFields, Prompts
from smallr.methods.planner.task import Draft, Outcome, Problem, Task

_PROBLEM = frozenset({"context", "question"})
_JUDGED = PromptFields(_PROBLEM | {"plan"}, frozenset({"noun", "result", "examples"}))
FIELDS: Mapping[str, PromptFields] = {
    "generate": PromptFields(_PROBLEM, frozenset({"noun"})),
    "repair": PromptFields(_PROBLEM | {"rejected"}, frozenset({"noun"})),
    "yes_no": _JUDGED,
    "reason": _JUDGED,
}


def load_prompts(files: Mapping[str, str]) -> Prompts:
    """Reads the prompts.

    Raises:
      UserError: a file that cannot be read or whose fields are wrong.
    """
    return Prompts("smallr.methods.planner", FIELDS, files)


def load_examples(task: str, name: str) -> str:
    """Reads the worked examples that stand in front of a discriminator's prompt in its few-shot variant.

    Args:
      task: sql or arithmetic.
      name: of the prompt.
    """
    file = resources.files("smallr.methods.planner").joinpath("prompts", f"examples_{task}_{name}.txt")
    return file.read_text(encoding="utf-8").strip() + "\n\n"


def context_block(title: str, context: str, *, wanted: bool = True) -> str:
    """Returns the context under its title, or nothing."""
    return f"{title}:\n{context}\n\n" if wanted and context else ""


class JudgePrompt:
    """Writes what a discriminator is asked about one plan; all plans of a problem share its beginning.

    Args:
      prompts: of the method.
      name: of the prompt: yes_no or reason.
      task: for its words.
      shows_context: whether the context (a schema) is in it.
      shows_result: whether the outcome of the plan is in it.
      examples: worked examples, as text in front of all.
    """

    def __init__(
        self,
        prompts: Prompts,
        name: str,
        task: Task,
        *,
        shows_context: bool = True,
        shows_result: bool = False,
        examples: str = "",
    ):
        self._prompts, self._name, self._task = prompts, name, task
        self._shows_context, self._shows_result, self._examples = shows_context, shows_result, examples

    def render(self, problem: Problem, plan: str, outcome: Outcome | None) -> str:
        """Writes the prompt; `outcome` is needed where results are shown."""
        return self._prompts.render(
            self._name,
            examples=self._examples,
            context=context_block(self._task.context_title, problem.context, wanted=self._shows_context),
            question=problem.question,
            noun=self._task.noun,
            plan=plan,
            result=self._result(outcome) if self._shows_result and outcome is not None else "",
        )

    def _result(self, outcome: Outcome) -> str:
        shown = f"It fails: {outcome.error}" if outcome.error else f"It returns:\n{outcome.preview}"
        return f"{shown}\n"

    @property
    def digest(self) -> str:
        """A digest of all that the prompts depend on besides the problem."""
        settings = (self._name, self._task.noun, self._shows_context, self._shows_result, self._examples)
        return f"{self._prompts.digest} {settings}"


class RewardPrompt:
    """Writes what a reward head reads in front of a plan: what a generator is asked, so that a plan is the answer to it.

    Args:
      prompts: of the method.
      task: for its words.
      shows_context: whether the context (a schema) is in it.
    """

    def __init__(self, prompts: Prompts, task: Task, *, shows_context: bool = True):
        self._prompts, self._task, self._shows_context = prompts, task, shows_context

    def render(self, problem: Problem) -> str:
        """Writes the prompt that all plans of a problem share."""
        context = context_block(self._task.context_title, problem.context, wanted=self._shows_context)
        return self._prompts.render("generate", context=context, question=problem.question, noun=self._task.noun)

    @property
    def digest(self) -> str:
        """A digest of all that the prompts depend on besides the problem."""
        return f"{self._prompts.digest} {(self._task.noun, self._shows_context)}"


def make_draft(
    task: Task, prompts: Prompts, problem: Problem, count: int, *, prefix: str, rejected: str, round: int
) -> Draft:
    """Renders what a generator is asked: to write plans, or to mend the one that was `rejected`; as in `Task.propose`."""
    fields = {"context": context_block(task.context_title, problem.context), "question": problem.question}
    fields |= {"rejected": rejected} if rejected else {}
    prompt = prompts.render("repair" if rejected else "generate", noun=task.noun, **fields)
    return Draft(prompt, prefix, rejected, count, round)
