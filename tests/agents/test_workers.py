"""Row workers: what is finished stays, what fails fails alone, and what ends a job."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console

from smallr.agents.agent import Agent, AgentClient
from smallr.agents.circuit_breaker import CircuitBreaker
from smallr.agents.progress import Progress
from smallr.agents.usage import Usage
from smallr.agents.workers import FIELDS, RowWorkers
from smallr.core.errors import UserError
from smallr.core.journal import Journal
from smallr.core.stages import Stopped
from smallr.language.base import Prices
from smallr.sampling.requests import SamplingParams
from tests.evals.fakes import FakeModel


@dataclasses.dataclass(frozen=True)
class Row:
    id: str


ROWS = [Row(str(number)) for number in range(10)]


class Job:
    """Ten rows, each of which is asked about once."""

    def __init__(self, folder: Path, *, concurrency: int = 3, max_errors: int = 3):
        self.journal = Journal(folder / "journal.jsonl", FIELDS)
        self.model = FakeModel(lambda prompt: prompt.upper())
        self.agents = {"a": Agent(self.model, SamplingParams(), Prices(0, 0))}
        self.finished: list[str] = []
        breaker = CircuitBreaker(max_errors)

        def client(usage: Usage) -> AgentClient:
            options = {"seed": 0, "reasks": 0, "reask_temperature": 0.0, "breaker": breaker, "usages": (usage,)}
            return AgentClient(self.agents, **options)

        self.workers = RowWorkers(
            self.journal, self.agents, client, breaker, lambda out: self.finished.append(out["id"]), concurrency
        )

    def run(self, fault=None) -> list[str]:
        async def work(row: Row, client: AgentClient, usage: Usage) -> dict:
            await asyncio.sleep(0)
            if fault is not None:
                fault(row.id)
            (sample,) = await client.samples("a", f"row {row.id}")
            return {"id": row.id, "text": sample.text, "requests": usage.total("requests")}

        return self.workers.run(ROWS, work)


def test_finished_rows_are_not_asked_again(tmp_path):
    job = Job(tmp_path)
    assert job.run() == []
    assert job.finished == list("0123456789")
    assert job.journal["3"]["row"] == {"id": "3", "text": "ROW 3", "requests": 1}
    assert job.journal["3"]["usage"]["a"]["prompt_tokens"] == 2
    again = Job(tmp_path)
    assert again.run() == []
    assert again.model.requests == []


def test_a_row_that_fails_is_left_open_and_the_others_are_finished(tmp_path):
    def fault(row: str) -> None:
        if row in "25":
            raise TypeError(f"row {row} is odd")

    job = Job(tmp_path)
    assert job.run(fault) == ["TypeError: row 2 is odd", "TypeError: row 5 is odd"]
    assert job.finished == list("01346789")
    assert Job(tmp_path).run() == []
    assert len(Journal(tmp_path / "journal.jsonl")) == 10


def signalled(row: str) -> None:
    if row == "4":
        os.kill(os.getpid(), signal.SIGINT)


def refused(row: str) -> None:
    if row == "4":
        raise UserError("the key is refused")


def broken(row: str) -> None:
    if row >= "4":
        raise TypeError("always")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (signalled, "stopped: interrupted by SIGINT"),
        (refused, "stopped: the key is refused"),
        (broken, "stopped: 3 requests in a row got no reply; the last one: TypeError: always"),
    ],
)
def test_what_ends_a_job_loses_nothing(fault, message, tmp_path):
    with pytest.raises(Stopped, match=message) as stop:
        Job(tmp_path, concurrency=1).run(fault)
    job = Job(tmp_path)
    done = len(job.journal)
    assert 4 <= done < 10
    assert f"{done} rows are finished and kept in {tmp_path}" in str(stop.value)
    assert job.run() == []
    assert len(job.model.requests) == 10 - done


def test_progress_counts_rows_requests_and_cost():
    usage, prior = Usage(), Usage()
    prior.add({"a": {"requests": 5, "completion_tokens": 1_000_000}})
    agents = {"a": Agent(FakeModel(str), SamplingParams(), Prices(0.0, 2.0))}
    console = Console(file=io.StringIO(), width=150)
    with Progress(4, agents, usage, prior, lambda: [("good", "3"), ("", "1 bad")], "a job", console) as progress:
        progress.advance(resumed=True)
        assert progress.line().endswith("(and 5 requests before); ETA unknown")
        progress.advance()
        usage.add({"a": {"requests": 2, "prompt_tokens": 7}})
        assert progress.line().startswith(
            "2 of 4 rows: 3 good; 2 requests, 0 from the cache, 0 asked again; 7 + 0 tokens"
        )
        assert "cost 2.0000 (and 5 requests before); ETA 0:00:0" in progress.line()
    shown = console.file.getvalue()
    assert "a job" in shown
    assert "2 of 4 (1 of an earlier session), ETA" in shown
    assert "1 bad" in shown
