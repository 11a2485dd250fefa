"""The best evaluation of a run: what counts as better, when training ends, and which checkpoint stands for the run."""

from __future__ import annotations

import json

import pytest

from smallr.config import base
from smallr.core.errors import UserError
from smallr.reporting.page import _heldout, open_run
from smallr.training.best import Best
from smallr.training.saved import find_run
from smallr.training.trainer import Trainer
from tests.runs import metrics
from tests.training.test_trainer import config_of, pairs


def best_of(**fields):
    config = base()
    config.eval_every = 1
    config.best.update(fields)
    return Best.from_config(config)


def see(best, *values, start=1):
    return [best.see(step, {best.metric: value}) for step, value in enumerate(values, start)]


def test_smaller_losses_and_greater_accuracies_are_better():
    assert see(best_of(metric="loss"), 3.0, 2.0, 2.5, 1.0) == [True, True, False, True]
    assert see(best_of(metric="accuracy"), 0.3, 0.2, 0.5, 0.5) == [True, False, True, False]
    assert see(best_of(metric="accuracy", mode="min"), 0.3, 0.2, 0.5) == [True, True, False]
    assert see(best_of(metric="nll_answer_token", min_delta=0.5), 3.0, 2.6, 2.4) == [True, False, True]


def test_a_value_that_is_not_finite_is_never_the_best():
    best = best_of(metric="spearman", patience=3)
    assert see(best, float("nan"), 0.5, float("inf"), 0.9) == [False, True, False, True]
    assert (best.step, best.value, best.exhausted) == (4, 0.9, False)


def test_patience_counts_evaluations_and_a_resumed_run_has_the_same_count():
    best = best_of(metric="loss", patience=2)
    see(best, 2.0, 3.0)
    assert not best.exhausted
    again = best_of(metric="loss", patience=2)
    again.replay([{"step": 0, "split": "eval", "loss": 0.1}, {"step": 1, "split": "train", "loss": 9.0}])
    again.replay({"step": step, "split": "eval", "loss": loss} for step, loss in ((1, 2.0), (2, 3.0)))
    assert again == best
    see(best, 2.0, start=3)
    assert best.exhausted
    assert best.verdict() == "2 evaluations in turn were no better than that of step 1, loss 2.0000: the run ends"


def test_fields_that_do_not_go_together_are_named():
    with pytest.raises(UserError, match=r"config.best.mode: 'up' must be one of: auto, min, max"):
        best_of(mode="up")
    with pytest.raises(UserError, match=r"config.best.patience=2 counts evaluations while training: set"):
        best_of(patience=2)
    best = best_of(metric="acuracy")
    with pytest.raises(UserError, match=r"no metric 'acuracy'; did you mean accuracy"):
        best.check({"accuracy": 1.0, "loss": 2.0})
    with pytest.raises(UserError, match=r"there are no held-out rows; set config.data.eval_split"):
        best.check({})


def test_a_metric_without_held_out_rows_is_refused_before_the_model_is_loaded(small_model, tmp_path):
    config = config_of(small_model)
    config.best.metric = "loss"
    with Trainer(config, tmp_path / "run") as trainer:
        trainer.load_data(pairs(":8"))
        with pytest.raises(UserError, match=r"config.best.metric=loss: there are no held-out rows"):
            trainer.fit()
        assert trainer.state is None


@pytest.mark.slow
def test_a_run_ends_when_it_gets_worse_and_its_best_checkpoint_stands_for_it(small_model, tmp_path):
    config = config_of(small_model, steps=12, eval_every=1)
    config.best.metric, config.best.mode, config.best.patience = (
        "loss",
        "max",
        2,
    )  # a loss that falls gets worse by this
    config.checkpoint.keep_last = 1

    def run():
        with Trainer(config, tmp_path) as trainer:
            trainer.load_data(trainer_rows("train"), trainer_rows("eval"))
            return trainer.fit()

    def trainer_rows(name):
        import datasets

        return datasets.Dataset.from_list(pairs(":16"))

    report = run()
    evaluations = [line["loss"] for line in metrics(tmp_path, "eval")]
    best = max(range(1, len(evaluations)), key=lambda step: evaluations[step])
    assert (report["best"]["step"], report["best"]["value"]) == (best, evaluations[best])
    assert report["steps"] == best + 2 < 12
    shown = (tmp_path / "report.txt").read_text().splitlines()
    at = next(index for index, line in enumerate(shown) if line.startswith("loss "))
    values = [f"{evaluations[step]:.4f}" for step in (0, best + 2, best)]
    for line, label, value in zip(shown[at : at + 3], ("before", "after", "best"), values, strict=True):
        assert [label, value] in [line.split()[:2], line.split()[1:3]], line
    [(_, losses), *_] = [row for row in _heldout([open_run(tmp_path, "run")]) if row[0] == "loss"]
    assert losses == values
    assert report["finished"]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {str(best), str(best + 2)}
    assert find_run(tmp_path).checkpoint.step == best
    assert json.loads((tmp_path / "best.json").read_text())["metric"] == "loss"
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    assert run()["steps"] == best + 2  # the same command again trains no further
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines
    assert "--config.best.patience=0" in (tmp_path / "report.txt").read_text()

    config.best.metric, config.best.patience, config.steps = "", 0, best + 3
    config.optimizer.on_extend = "constant"
    run()  # goes on without a metric: its newest checkpoint stands for it again
    assert find_run(tmp_path).checkpoint.step == best + 3
