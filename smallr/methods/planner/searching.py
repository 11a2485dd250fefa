"""Searches of a benchmark: planners that ask the generator, each with a discriminator or an oracle."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from smallr.core.journal import Journal
from smallr.methods.planner.config import SEARCHES, budget
from smallr.methods.planner.discriminators.base import MODES, NOT_EXECUTABLE, Case, Discriminator, Judgement, scores
from smallr.methods.planner.discriminators.oracle import Oracle
from smallr.methods.planner.opening import Judging, Tools, open_writer
from smallr.methods.planner.planners import PLANNERS, Judge, Search
from smallr.methods.planner.task import Candidate, Outcome, Problem, Write
from smallr.methods.planner.writers import GivenWriter

if TYPE_CHECKING:
    from smallr.methods.planner.pipeline import Benchmark


@dataclasses.dataclass(frozen=True)
class PlannedSearch:
    """One planner with one discriminator.

    Attributes:
      judging: the discriminator; None for an oracle.
      accuracy: of the oracle.
      generator: what tells the generator from another one.
      seen: plan -> what the discriminator said, of the problems that were searched.
    """

    tools: Tools
    planner: str
    judging: Judging | None
    mode: str
    rule: str
    accuracy: float
    generator: Mapping[str, Any]
    seen: dict[str, Judgement] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """Tells it from the others of a run."""
        if self.planner == "greedy":
            return self.planner
        judge = f"oracle_{self.accuracy:g}" if self.judging is None else f"{self.judging.kind}_{self.mode}_{self.rule}"
        return f"{self.planner}_{judge}"

    @property
    def digest(self) -> str:
        """What its plans depend on, besides the problems and the given candidates."""
        judge = "" if self.judging is None else self.judging.digest
        settings = [self.name, judge, self.tools.config.budget.to_dict(), dict(self.generator)]
        return json.dumps([settings, self.tools.prompts.digest])

    @contextlib.contextmanager
    def open(self) -> Iterator[Judge]:
        """Opens the discriminator as the function that planners call."""
        if self.planner == "greedy":
            yield lambda _, plans, __: [0.0] * len(plans)
        elif self.judging is None:
            yield self._scores(Oracle(self.tools.task, self.accuracy, self.tools.config.seed))
        else:
            with self.judging.open() as discriminator:
                yield self._scores(discriminator)

    def _scores(self, discriminator: Discriminator) -> Judge:
        checks, _ = MODES[self.mode]

        def judge(problem: Problem, plans: Sequence[str], outcomes: Sequence[Outcome]) -> list[float]:
            sent = [index for index, outcome in enumerate(outcomes) if not (checks and outcome.error)]
            case = Case(problem, tuple(plans[index] for index in sent), tuple(outcomes[index] for index in sent))
            ((_, judgements),) = discriminator.judge([case])
            self.seen.update(zip(case.plans, judgements, strict=True))
            values = scores(judgements, case.outcomes, self.mode, self.rule)
            return list(spread(values, sent, len(plans)))

        return judge


def spread(values: Sequence[float], places: Sequence[int], count: int) -> Iterator[float]:
    """Yields the values at their places, and the score of what was not executable everywhere else."""
    found = dict(zip(places, values, strict=True))
    yield from (found.get(index, NOT_EXECUTABLE) for index in range(count))


def planned_searches(tools: Tools, generator: Mapping[str, Any]) -> list[PlannedSearch]:
    """Returns the searches that a config asks for.

    `iterative` and `tree` run with each discriminator, mode and rule. With `oracle` they and `rerank` run with an oracle of
    each accuracy, on the same proposals.
    """
    config = tools.config
    wanted = [name for name in SEARCHES if name in config.planners]
    found = (
        [PlannedSearch(tools, "greedy", None, "naive", "soft", 1.0, generator)] if "greedy" in config.planners else []
    )
    kinds = config.discriminator.kinds if config.discriminator.model else ()
    for planner in wanted:
        for kind in kinds:
            for mode in config.discriminator.modes:
                judging = Judging(tools, kind, MODES[mode][1])
                rules = config.discriminator.rules if kind == "reasoning" else ("soft",)
                found += [PlannedSearch(tools, planner, judging, mode, rule, 1.0, generator) for rule in rules]
    if "oracle" in config.planners:
        for planner in ("rerank", *wanted):
            for accuracy in config.oracle.accuracies:
                found.append(PlannedSearch(tools, planner, None, "check", "soft", accuracy, generator))
    return found


def search(folder: Path, benchmark: Benchmark, planned: PlannedSearch, candidates: Sequence[Mapping]) -> list[dict]:
    """Searches a plan for each problem; problems that are finished are kept over a kill."""
    tools = planned.tools
    journal = Journal(folder / "journal.jsonl", ("plan", "correct"))
    todo = [problem for problem in benchmark.problems if problem.id not in journal]
    if todo:
        gold = tools.task.gold(todo)
        with planned.open() as judge, _writer(tools, candidates) as write:
            for problem, wanted in tqdm(list(zip(todo, gold, strict=True)), desc=planned.name, disable=None):
                journal.add(problem.id, _search_one(planned, judge, write, problem, wanted))
    return [{"id": problem.id, **journal[problem.id]} for problem in benchmark.problems]


@contextlib.contextmanager
def _writer(tools: Tools, candidates: Sequence[Mapping[str, Any]]) -> Iterator[Write]:
    if tools.config.generator.model:
        with open_writer(tools.config) as writer:
            yield writer
    else:
        given = {row["id"]: [Candidate(**each) for each in row["candidates"]] for row in candidates}
        yield GivenWriter(given, tools.config.seed)


def _search_one(planned: PlannedSearch, judge: Judge, write: Write, problem: Problem, gold: Outcome) -> dict[str, Any]:
    task = planned.tools.task
    found = Search(task, write, judge, problem, budget(planned.tools.config))
    plan = PLANNERS[planned.planner](found)
    found.score([plan] if plan else [])  # a greedy plan has not been executed yet
    outcome = found.outcomes.get(plan or "")
    correct = bool(outcome and not outcome.error and not gold.error and task.equal(outcome, gold))
    counts = {"proposals": found.proposals, "judged": len(found.scored), "expansions": found.expansions}
    return {"plan": plan, "correct": correct, **counts}
