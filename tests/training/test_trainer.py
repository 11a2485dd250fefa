"""The Trainer by rounds, and what it learns: on a model of a thousand words, made for these tests."""

from __future__ import annotations

import importlib
import re
import threading

import jax
import numpy as np
import pytest

from smallr.config import choice, finish, preference, rationale, unpaired
from smallr.core import traced
from smallr.core.errors import UserError
from smallr.core.reuse import Kept
from smallr.core.sharding import make_mesh
from smallr.data.sources import load_rows
from smallr.training import reading
from smallr.training import rounds as rounds_module
from smallr.training import step as step_module
from smallr.training.trainer import Trainer
from tests.runs import final_arrays, metrics

ROW_LENGTH, SCORED = 640, 512


def pairs(part: str) -> list[dict]:
    return list(load_rows("builtin:arithmetic/preference", f"train[{part}]"))


def config_of(model, config=None, **changes):
    config = preference() if config is None else config
    config.unlock()
    config.model, config.compute.dtype, config.compute.remat = model, "float32", "none"
    config.data.chat, config.data.eval = False, ""
    config.batch.rows, config.batch.row_length = 2, ROW_LENGTH
    config.batch.scored, config.batch.examples = SCORED, 8
    config.epochs, config.steps, config.checkpoint.every = 0, 6, 100
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule, config.optimizer.warmup = "constant", 0
    config.update_from_flattened_dict(changes)
    return finish(config, None)


def two_rounds(trainer, until=(3, 6), **renew) -> Trainer:
    with trainer:
        trainer.set_data(pairs(":16"))
        trainer.fit(until=until[0])
        trainer.set_data(pairs("16:32"), **renew)
        trainer.fit(until=until[1])
    return trainer


NEW = {"renew_optimizer": True, "renew_reference": True}


@pytest.fixture(scope="module")
def rounds(small_model, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("rounds")
    two_rounds(Trainer(config_of(small_model), workdir), **NEW)
    return workdir


def assert_same_arrays(ours, theirs, prefix=""):
    ours, theirs = final_arrays(ours), final_arrays(theirs)
    names = [name for name in theirs if name.startswith(prefix)]
    assert len(names) > 10
    for name in names:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def losses(*workdirs) -> list[float]:
    return [line["loss"] for workdir in workdirs for line in metrics(workdir)]


@pytest.mark.slow
def test_two_rounds_are_two_runs_one_after_the_other(small_model, rounds, tmp_path):
    for name, start, part in (("first", small_model, ":16"), ("second", str(tmp_path / "first"), "16:32")):
        with Trainer(config_of(start, steps=3), tmp_path / name) as trainer:
            trainer.load_data(pairs(part))
            assert trainer.fit()["finished"]
    assert_same_arrays(rounds, tmp_path / "second", "params/")
    assert_same_arrays(rounds, tmp_path / "second", "opt_state/")
    assert losses(rounds) == losses(tmp_path / "first", tmp_path / "second")
    assert losses(rounds)[0] == pytest.approx(np.log(2), abs=2e-6)
    assert losses(rounds)[3] == pytest.approx(np.log(2), abs=2e-6), "the reference is renewed"


@pytest.mark.slow
def test_rounds_that_were_stopped_inside_the_second_end_the_same(small_model, rounds, tmp_path):
    two_rounds(Trainer(config_of(small_model), tmp_path), until=(3, 5), **NEW)
    two_rounds(Trainer(config_of(small_model), tmp_path), **NEW)
    assert_same_arrays(tmp_path, rounds)
    assert losses(tmp_path) == losses(rounds)


@pytest.mark.slow
def test_a_round_goes_on_with_optimizer_and_reference_and_keeps_its_programs(small_model, rounds, tmp_path, capsys):
    trainer = two_rounds(Trainer(config_of(small_model), tmp_path))
    said = capsys.readouterr().out
    assert f"programs: kept, for rows of {ROW_LENGTH} tokens, {SCORED} scored positions and 8 examples" in said
    assert len(trainer._compiled) == 1
    assert "compiled anew" not in said
    assert losses(tmp_path)[:3] == losses(rounds)[:3]
    assert losses(tmp_path)[3] != losses(rounds)[3], "the reference is that of the start"
    state = trainer.state.opt_state
    assert int(next(iter(np.ravel(np.asarray(x)) for x in _counts(state)))[0]) == 6


def _counts(state):
    import jax

    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state) if "count" in str(path[-1])]


@pytest.mark.slow
def test_rows_of_another_shape_are_compiled_for_and_that_is_said(small_model, tmp_path, capsys):
    fields = {
        "batch.scored": 0,
        "batch.examples": 0,
        "steps": 2,
        "freeze": "embed|layers",
    }  # few gradients compile fast
    with Trainer(config_of(small_model, **fields), tmp_path) as trainer:
        trainer.set_data([{**row, "chosen": "yes", "rejected": "no"} for row in pairs(":8")])
        trainer.fit(until=1)
        trainer.set_data(pairs("8:16"))
        trainer.fit()
    assert "programs: compiled anew, for rows of 640 tokens" in capsys.readouterr().out
    assert len(trainer._compiled) == 2


def test_what_rounds_cannot_do_is_refused(small_model, tmp_path):
    with Trainer(config_of(small_model, epochs=1), tmp_path / "a") as trainer:
        trainer.set_data(pairs(":8"))
        with pytest.raises(UserError, match=r"a run in rounds has config\.epochs=0"):
            trainer.set_data(pairs("8:16"))
    live, short = (
        config_of(small_model, **{"objective.reference": "live"}),
        config_of(small_model, **{"batch.scored": 8}),
    )
    with Trainer(live, tmp_path / "b") as trainer, pytest.raises(UserError, match="set it to cached"):
        trainer.set_data(pairs(":8"), renew_reference=True)
    message = r"config\.batch\.scored=8: an example has \d+ scored tokens"
    with Trainer(short, tmp_path / "c") as trainer, pytest.raises(UserError, match=message):
        trainer.set_data(pairs(":8"))


def choices(count: int) -> list[dict]:
    return [{"question": f"Is {i} even?", "label": i % 2} for i in range(count)]


def labelled(count: int) -> list[dict]:
    return [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in pairs(f":{count}")
        for name in ("chosen", "rejected")
    ]


def thoughts(count: int) -> list[dict]:
    return list(load_rows("builtin:arithmetic/rationale", f"train[:{count}]"))


def sft_rows(count: int) -> list[dict]:
    return [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs(f":{count}")]


def by_token():
    config = rationale("answer_first")
    config.objective.normalisation = "token_mean"
    return config


def cogpo():
    return preference("sigmoid", {"small": 0.1, "medium": 0.2, "large": 0.5})


@pytest.mark.slow
def test_a_run_takes_the_programs_of_an_equal_one_and_of_no_other(small_model, tmp_path, monkeypatch, capsys):
    kept = Kept(8)
    for module in (rounds_module, step_module):
        monkeypatch.setattr(module, "PROGRAMS", kept)
    said = {}
    runs = {"first": {}, "equal": {}, "longer": {"steps": 3}, "other": {"optimizer.clip_norm": 0.01}}
    for name, changes in runs.items():
        trainer = Trainer(config_of(small_model, **{"steps": 2, **changes}), tmp_path / name)
        trainer.load_data(pairs(":8"))
        trainer.fit()
        said[name] = "compiling the step" in capsys.readouterr().err
    assert said == {"first": True, "equal": False, "longer": False, "other": True}, "a constant rate knows no length"
    assert_same_arrays(tmp_path / "equal", tmp_path / "first")
    first, other = (final_arrays(tmp_path / name) for name in ("first", "other"))
    assert any((first[name] != other[name]).any() for name in first)


@pytest.mark.slow
def test_a_run_in_another_process_traces_neither_step_nor_evaluation_and_has_the_same_bits(
    small_model, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("SMALLR_CACHE", str(tmp_path / "cache"))

    exported, export_now = [], traced._exported
    monkeypatch.setattr(traced, "_exported", lambda *given: exported.append(1) or export_now(*given))

    def run(name: str, is_kept: bool) -> tuple[int, bool]:
        exported.clear()
        caplog.clear()
        monkeypatch.setattr(traced, "is_kept", is_kept)
        for module in (rounds_module, step_module):
            monkeypatch.setattr(module, "PROGRAMS", Kept(8))  # as in a new process
        with Trainer(config_of(small_model, steps=2), tmp_path / name) as trainer, jax.log_compiles():
            trainer.load_data(pairs(":8"), pairs("8:12"))
            trainer.prepare()
            trainer.evaluate_before()
            traced_names = re.findall(r"Finished tracing (?:\+ transforming )?(\w+) for", caplog.text)
            trainer.fit()
        return len(exported), "evaluation" in traced_names

    assert run("usual", False) == (0, True)
    assert run("first", True) == (1, True)
    assert run("second", True) == (0, False)
    for name in ("first", "second"):
        assert_same_arrays(tmp_path / name, tmp_path / "usual")


def sft():
    return importlib.import_module("configs.sft").get_config()


# Losses of step 1 and of step 6, on one CPU device; a change of these numbers is a change of what is learned.
PINNED = {
    "preference": (cogpo, lambda: pairs(":16"), (0.6931472, 0.3143679)),
    "unpaired": (unpaired, lambda: labelled(8), (0.5, 0.4915537)),
    "sft": (sft, lambda: sft_rows(16), (6.9020200, 6.1873651)),
    "rationale": (by_token, lambda: thoughts(16), (6.8939519, 6.2053518)),
    "choice": (choice, lambda: choices(16), (0.6942773, 0.6895721)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PINNED)
def test_what_is_learned_is_what_was_learned(name, small_model, tmp_path):
    make, rows, (first, last) = PINNED[name]
    with Trainer(config_of(small_model, make()), tmp_path) as trainer:
        trainer.load_data(rows())
        trainer.fit()
    found = losses(tmp_path)
    assert (found[0], found[-1]) == pytest.approx((first, last), abs=1e-4)


def test_reading_ends_where_nobody_wants_the_weights(monkeypatch):
    begun, dropped = threading.Event(), threading.Event()

    def read(source, config, mesh, check):
        begun.set()
        dropped.wait()
        check()

    monkeypatch.setattr(reading, "read_decoder", read)
    reader = reading.WeightReader(None, None, make_mesh())
    reader.begin()
    begun.wait()
    threading.Timer(0.1, dropped.set).start()
    reader.drop()
    with pytest.raises(InterruptedError):
        reader.take()


class _Counted:
    """Counts how often a step is lowered."""

    def __init__(self, step, counts):
        self._step, self._counts = step, counts

    def lower(self, *arguments):
        self._counts.append(1)
        return self._step.lower(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"objective.reference": "live"}, {"freeze": "embed"}, {"optimizer.name": "muon"}]
)
def test_a_step_is_compiled_while_the_weights_are_read_and_then_found(small_model, tmp_path, monkeypatch, changes):
    monkeypatch.setattr(rounds_module, "PROGRAMS", Kept(8))
    compiled, make = [], step_module.make_step
    monkeypatch.setattr(
        rounds_module, "make_step", lambda *given, **options: _Counted(make(*given, **options), compiled)
    )
    with Trainer(config_of(small_model, steps=2, **changes), tmp_path / "run") as trainer:
        trainer.load_data(pairs(":8"))
        trainer.plan()
        assert len(compiled) == (0 if {"freeze", "objective.reference"} & changes.keys() else 1)
        trainer.fit()
    assert len(compiled) == 1
