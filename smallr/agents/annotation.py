"""Has agents work on rows until all have a reply, with everything that such a job counts and shows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from smallr.agents.agent import Agent, AgentClient
from smallr.agents.circuit_breaker import CircuitBreaker
from smallr.agents.progress import Progress
from smallr.agents.usage import Usage
from smallr.agents.workers import Row, RowWorkers
from smallr.core.journal import Journal


def annotate(
    rows: Sequence[Row],
    work: Callable[[Row, AgentClient, Usage], Awaitable[dict[str, Any]]],
    config: ConfigDict,
    agents: Mapping[str, Agent],
    journal: Journal,
    *,
    title: str,
    count: Callable[[Mapping[str, Any]], None] = lambda row: None,
    lines: Callable[[], Sequence[tuple[str, str]]] = tuple,
    console: Console | None = None,
) -> list[str]:
    """Works on every row that the journal does not have; the others are counted as they stand there.

    Args:
      rows: to be worked on.
      work: makes the output row of one, by a client whose usage is counted.
      config: with `seed`, `reasks`, `reask_temperature`, `max_errors` and `concurrency`.
      agents: by role.
      journal: of finished rows.
      title: of the progress that is shown.
      count: is told of every output row, new or from the journal.
      lines: (name, text) of the counts that are shown beside the progress.
      console: where it is shown; by default standard error.

    Returns:
      The errors of rows that got no reply.

    Raises:
      Stopped: it was interrupted, or too many requests in a row got no reply.
    """
    usage, prior, breaker = Usage(), Usage(), CircuitBreaker(config.max_errors)
    progress = Progress(len(rows), agents, usage, prior, lines, title, console or Console(stderr=True))

    def client(own: Usage) -> AgentClient:
        return AgentClient(
            agents,
            seed=config.seed,
            reasks=config.reasks,
            reask_temperature=config.reask_temperature,
            breaker=breaker,
            usages=(usage, own),
        )

    def finished(row: Mapping[str, Any], *, resumed: bool = False) -> None:
        count(row)
        progress.advance(resumed=resumed)

    for row in rows:
        if row.id in journal:
            prior.add(journal[row.id]["usage"])
            finished(journal[row.id]["row"], resumed=True)
    with progress:
        return RowWorkers(journal, agents, client, breaker, finished, config.concurrency).run(rows, work)
