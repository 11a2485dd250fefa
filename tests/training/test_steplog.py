"""Metrics are read one step behind, checked before anything is saved, and written a line every so many steps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from smallr.data.drops import DropReport
from smallr.training.best import Best
from smallr.training.report import Costs
from smallr.training.rounds import Round
from smallr.training.steplog import NonFiniteError
from smallr.training.trainer import Trainer


class Value:
    """A number on a device that works by itself: it is there when it was dispatched, and reading it waits."""

    def __init__(self, events, step, value, finished):
        self._events, self._step, self._value, self.finished = events, step, value, finished

    def block_until_ready(self):
        self.finished.append(self._step)
        return self

    def __array__(self, dtype=None, copy=None):
        if self._events[-1] != f"read {self._step}":
            self._events.append(f"read {self._step}")
        return np.asarray(self._value, dtype)


class OnDevice(Trainer):
    """The loop, with steps that only say when they are dispatched and read."""

    def __init__(self, *, losses=(), log_every=1, save_every=100, eval_every=0, steps=4):
        self.events, self.lines, self._losses = [], [], losses
        self.finished = []  # what was waited for when a step was dispatched
        self.config = SimpleNamespace(
            log_every=log_every,
            eval_every=eval_every,
            checkpoint=SimpleNamespace(every=save_every, hf_every=0),
            benchmark=SimpleNamespace(every=0),
        )
        self.step, self.steps, self.stopped, self.round, self.mesh, self.workdir = (
            0,
            steps,
            False,
            Round(),
            None,
            "run",
        )
        self.best = Best("", 1, 0, 0.0)
        self.costs = Costs(1.0, None, 8)
        self.objective = SimpleNamespace(summariser=lambda: lambda values, columns: {})
        self.training = SimpleNamespace(
            batches=lambda mesh, first, count: iter(range(first, first + count)),
            static_columns=dict,
            plan=SimpleNamespace(stats=lambda epoch: SimpleNamespace(steps=2)),
            examples=SimpleNamespace(rows=np.arange(8), report=DropReport("rows.jsonl", 9), sources=("rows.jsonl",)),
        )
        self.files = SimpleNamespace(
            last_metrics=lambda split: {},
            write_metrics=lambda step, line, split: self.lines.append((step, line["loss"])),
            checkpointer=SimpleNamespace(latest_step=lambda: None),
        )

    def take(self, batch):
        self.step += 1
        self.events.append(f"dispatch {self.step}")
        loss = self._losses[self.step - 1] if self._losses else float(self.step)
        metrics = {"loss": loss, "grad_norm": 1.0, "learning_rate": 0.1, "tokens": 4}
        examples = {"loss": np.full((1, 1), loss), "example": np.full((1, 1), self.step)}
        return {name: Value(self.events, self.step, value, self.finished) for name, value in metrics.items()}, examples

    def save(self):
        self.events.append(f"save {self.step}")

    def evaluate(self):
        self.events.append(f"evaluate {self.step}")

    def run(self):
        self.take_steps(self.steps, SimpleNamespace(should_stop=lambda step: False))
        return self


def test_two_steps_at_most_are_under_way_however_seldom_lines_are_written():
    trainer = OnDevice(log_every=100, steps=5).run()
    assert sorted(set(trainer.finished)) == [1, 2, 3, 4]
    assert trainer.finished == sorted(trainer.finished)


def test_the_next_step_is_dispatched_before_the_last_one_is_read():
    events = OnDevice().run().events
    assert events == [
        "dispatch 1", "dispatch 2", "read 1", "dispatch 3", "read 2", "dispatch 4", "read 3", "read 4", "save 4",
    ]  # fmt: skip


def test_all_steps_are_read_before_a_save_or_an_evaluation():
    events = OnDevice(save_every=2, eval_every=3).run().events
    for action in ("save 2", "evaluate 3", "save 4"):
        position = events.index(action)
        assert events[position - 1] == f"read {action.split()[1]}"


@pytest.mark.parametrize("save_every", [1, 2, 3, 100])
def test_lines_are_means_over_their_steps_whenever_they_are_read(save_every):
    assert OnDevice(save_every=save_every).run().lines == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert OnDevice(save_every=100, log_every=3, steps=7).run().lines == [(3, 2.0), (6, 5.0), (7, 7.0)]


def test_a_step_that_is_not_finite_is_named_although_the_next_was_dispatched_and_nothing_is_saved():
    trainer = OnDevice(losses=[1.0, np.nan, 1.0, 1.0])
    with pytest.raises(NonFiniteError, match=r"(?s)step 2: loss nan.*rows of rows\.jsonl in this step: \[2\]") as error:
        trainer.run()
    assert "not finite in rows [2]" in str(error.value).replace("\n", " ")
    assert trainer.events[-1] == "read 2"
    assert "dispatch 3" in trainer.events
    trainer = OnDevice(losses=[1.0, np.inf, 1.0, 1.0], save_every=2)
    with pytest.raises(NonFiniteError):
        trainer.run()
    assert not any(event.startswith("save") for event in trainer.events)
