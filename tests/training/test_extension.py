"""Runs that go on with another length or schedule: which learning rates follow, and what is refused."""

from __future__ import annotations

import shutil

import pytest

from smallr.config import finish, rationale
from smallr.core.errors import UserError
from smallr.data.sources import load_rows
from smallr.training.optimizer import Horizon, make_schedule
from smallr.training.trainer import Trainer
from tests.runs import metrics

ROWS = list(load_rows("builtin:arithmetic/rationale", "train[:6]"))


def config_of(model: str, **changes):
    config = rationale("answer_first")
    config.model, config.compute.dtype, config.compute.remat = model, "float32", "none"
    config.data.chat, config.data.eval = False, ""
    config.freeze = "embed|layers"  # the last norm learns alone: rates do not depend on it, and its steps compile fast
    config.batch.rows, config.batch.row_length, config.batch.packing = 2, 256, False
    config.epochs, config.checkpoint.every = 1, 100
    config.optimizer.learning_rate, config.optimizer.warmup = 1e-3, 1
    config.update_from_flattened_dict(changes)
    return finish(config, None)


def train(config, workdir) -> list[float]:
    """The learning rates of all steps so far."""
    with Trainer(config, workdir) as trainer:
        trainer.load_data(ROWS)
        trainer.fit()
    return [line["learning_rate"] for line in metrics(workdir)]


def planned(config, steps: int) -> list[float]:
    schedule = make_schedule(config.optimizer, (Horizon(0, steps),))
    return [float(schedule(n)) for n in range(steps)]


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory):
    """A run of one epoch."""
    workdir, config = tmp_path_factory.mktemp("finished"), config_of(small_model)
    assert train(config, workdir) == pytest.approx(planned(config, 3))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("how", ["rewarm", "constant", "as_new"])
def test_epochs_added_to_a_finished_run_follow_the_decision(how, small_model, finished, tmp_path):
    once, twice = config_of(small_model), config_of(small_model, epochs=2)
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"planned for 3 steps, has done 3 and would now have 6"):
        train(twice, tmp_path)
    rates = train(config_of(small_model, **{"epochs": 2, "optimizer.on_extend": how}), tmp_path)
    first, whole = planned(once, 3), planned(twice, 6)
    after = {"rewarm": first, "constant": [first[-1]] * 3, "as_new": whole[3:]}
    assert rates == pytest.approx(first + after[how])


@pytest.mark.slow
def test_another_schedule_is_refused_and_the_old_one_goes_on(small_model, finished, tmp_path):
    config = config_of(small_model)
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for field, value in (("optimizer.schedule", "linear"), ("optimizer.warmup", 2), ("optimizer.final_fraction", 0.5)):
        with pytest.raises(UserError, match=rf"{field} +\S+ +\W?{value}"):
            Trainer(config_of(small_model, **{field: value}), tmp_path)
    assert train(config, tmp_path) == pytest.approx(planned(config, 3)), "a finished run takes no further step"


@pytest.mark.slow
def test_figures_before_training_are_computed_anew_for_every_run(small_model, tmp_path, monkeypatch):
    """A cache of them would go stale when the code that computes them changes."""

    def before(workdir):
        with Trainer(config_of(small_model), workdir) as trainer:
            trainer.load_data(ROWS, ROWS[:2])
            trainer.fit()
            return trainer.baseline["metrics"], trainer.objective

    first, objective = before(tmp_path / "first")
    summariser = type(objective).summariser
    monkeypatch.setattr(
        type(objective),
        "summariser",
        lambda self: lambda values, columns: {**summariser(self)(values, columns), "of_another_code": 1.0},
    )
    second, _ = before(tmp_path / "second")
    assert second == {**first, "of_another_code": 1.0}
