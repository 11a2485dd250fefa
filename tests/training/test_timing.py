"""Seconds spent on waiting, by a clock that the test moves."""

from __future__ import annotations

import pytest

from smallr.training import timing


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_waiting_counts_and_work_between_does_not(clock):
    def items():
        for seconds in (2.0, 0.0, 5.0):
            clock[0] += seconds
            yield seconds
        clock[0] += 1.0

    timed, waited = timing.Timed(items()), []
    for _ in timed:
        waited.append(timed.waited)
        clock[0] += 7.0  # work
    assert waited == [2.0, 2.0, 7.0]
    assert timed.waited == 8.0


def test_laps_add_up_by_name(clock):
    laps = timing.Clock()
    for name, seconds in (("data", 1.0), ("model", 2.5), ("data", 0.5)):
        clock[0] += seconds
        laps.lap(name)
    assert laps.laps == {"data": 1.5, "model": 2.5}
    assert laps.line() == "data 1.5 s, model 2.5 s; 4.0 s in all"
