"""Selects worked examples that are put before every question (few-shot prompts)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from smallr.core.errors import UserError
from smallr.evals.benchmarks.base import Benchmark, Choice, Question
from smallr.evals.questions import Item, load_items


def load_shots(
    benchmark: Benchmark, items: Sequence[Item], count: int, data: str = "", split: str = ""
) -> tuple[Question | Choice, ...]:
    """Returns the first rows that can be examples: they have a worked solution, or options, and are not asked themselves.

    Args:
      benchmark: whose columns the rows have.
      items: what will be asked.
      count: how many; 0 for none, and nothing is read.
      data: a source of rows; empty: the benchmark's own on the hub.
      split: of the source; empty: train, which is all of a file.

    Raises:
      UserError: fewer than `count`, or what `load_items` raises.
    """
    if not count:
        return ()
    asked = {_text(item.task) for item in items}
    rows, report = load_items(benchmark, data, split or "train")
    found = [item.task for item in rows if _can_show(item.task) and _text(item.task) not in asked][:count]
    if len(found) < count:
        raise UserError(
            f"config.shots.count={count}: {report.source} has only {len(found)} rows with a worked solution that are not among "
            "the questions; give others with --config.shots.data=FILE"
        )
    return tuple(found)


def before_options(items: Sequence[Item], shots: Sequence[Choice]) -> list[Item]:
    """Returns questions by likelihood, each with the examples and their right options at the beginning of its contexts."""
    text = "".join(f"{shot.contexts[shot.gold]}{shot.continuations[shot.gold]}\n\n" for shot in shots)
    return [
        replace(item, task=replace(item.task, contexts=tuple(text + context for context in item.task.contexts)))
        for item in items
    ]


def _can_show(task: Question | Choice) -> bool:
    return isinstance(task, Choice) or bool(task.solution)


def _text(task: Question | Choice) -> str:
    return task.prompt if isinstance(task, Question) else repr((task.contexts, task.continuations))
