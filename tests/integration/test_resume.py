"""Killed, stopped, damaged, extended: what a run does when it goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from smallr.core.errors import UserError
from smallr.training.trainer import Trainer
from tests.compiling import narrowed
from tests.runs import ROOT, command, environment, final_arrays, metrics, overrides, run, smoke, train

CONFIG = "configs/cogpo.py:smoke"
STEPS = 12


@pytest.fixture(scope="module")
def fields(small_model):
    """What the runs have that the smoke run has not."""
    changes = {"data.eval": "", "steps": STEPS, "eval_every": 0, "checkpoint.every": 1, "batch.row_length": 640}
    changes |= {"batch.scored": 512, "batch.examples": 8}  # whatever rows: all runs have the shapes of one
    changes |= {"checkpoint.keep_last": 3}
    return {**changes, "model": small_model, "data.chat": False}


def start(forks, workdir, fields, *more):
    """A run in a process, whose numbers have the bits of those in this one."""
    return forks.start(narrowed(command(CONFIG, workdir, *overrides(fields), *more))[1:])


def steps_saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def wait_for(process, condition, seconds=120):
    """Until `condition()`, or the end of the process, whichever comes first."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the run did not get that far"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, fields):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    train(smoke("cogpo", **fields), workdir)
    return workdir


def assert_same_end(workdir, uninterrupted):
    expected, found = final_arrays(uninterrupted), final_arrays(workdir)
    assert expected.keys() == found.keys()
    assert len(expected) > 20
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert [line["step"] for line in metrics(workdir)] == list(range(1, STEPS + 1))
    losses = [[line["loss"] for line in metrics(folder)] for folder in (workdir, uninterrupted)]
    assert losses[0] == losses[1]


@pytest.mark.process
def test_killed_inside_a_save_and_then_stopped_by_sigterm_equals_uninterrupted(tmp_path, uninterrupted, fields, forks):
    killed = start(forks, tmp_path, fields)
    wait_for(killed, lambda: steps_saved(tmp_path))
    wait_for(killed, lambda: any((tmp_path / "checkpoints").glob("*tmp*")))
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "the run ended before it was killed"
    assert any((tmp_path / "checkpoints").glob("*tmp*")), "the kill did not hit a save"
    begun = steps_saved(tmp_path)[-1]
    stopped = start(forks, tmp_path, fields, "--config.checkpoint.every=1000")
    wait_for(stopped, lambda: metrics(tmp_path)[-1]["step"] >= begun + 2)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(60) == 0, stopped.printed()
    assert f"resuming {tmp_path} at step {begun}" in stopped.printed()
    assert "asked to stop" in stopped.printed()
    assert begun + 2 <= steps_saved(tmp_path)[-1] < STEPS
    train(smoke("cogpo", **fields), tmp_path)
    assert_same_end(tmp_path, uninterrupted)


def handles_sigterm(process):
    """Whether a process has a handler of SIGTERM."""
    caught = re.search(r"SigCgt:\s*(\w+)", (Path("/proc") / str(process.pid) / "status").read_text())
    return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells which signals a process handles")
@pytest.mark.parametrize("seconds", [0, 3.5])
def test_sigterm_in_the_first_seconds_ends_the_run_at_once_with_one_line(tmp_path, seconds, fields):
    """As soon as Python has begun the program, which is while it imports, and some seconds later."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command(CONFIG, tmp_path, *overrides(fields)), cwd=ROOT, env=environment(), **pipes)
    wait_for(process, lambda: handles_sigterm(process))
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode in (0, 128 + signal.SIGTERM), output
    assert output.count("SIGTERM") == 1
    assert "Traceback" not in output


@pytest.mark.slow
def test_sigterm_keeps_its_handler_only_while_steps_are_taken(tmp_path, fields):
    before = signal.getsignal(signal.SIGTERM)
    with Trainer(smoke("cogpo", **fields), tmp_path) as trainer:
        take = trainer.take

        def stop_after_this(batch):
            if trainer.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return take(batch)

        trainer.take = stop_after_this
        report = trainer.fit()
    assert (report["steps"], report["finished"], trainer.stopped) == (3, False, True)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, uninterrupted, capsys, caplog, fields):
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    newest = steps_saved(tmp_path)[-1]
    data = [path for path in (tmp_path / "checkpoints" / str(newest) / "state").rglob("*") if path.is_file()]
    largest = max(data, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    train(smoke("cogpo", **fields), tmp_path)
    assert f"resuming {tmp_path} at step {newest - 1}" in capsys.readouterr().out
    assert f"{newest} is damaged" in caplog.text
    assert_same_end(tmp_path, uninterrupted)


@pytest.mark.slow
def test_resuming_with_another_objective_or_rate_stops_and_shows_the_difference(uninterrupted, fields):
    for field, value in (("objective.beta.small", 0.3), ("optimizer.learning_rate", 0.5)):
        with pytest.raises(UserError, match=rf"{field} +\S+ +{value}"):
            Trainer(smoke("cogpo", **fields, **{field: value}), uninterrupted)


@pytest.mark.slow
def test_an_extension_asks_what_the_learning_rate_does_and_is_noted(tmp_path, capsys, fields):
    fields = {**fields, "freeze": "embed|layers"}  # two schedules make two programs; few gradients compile fast
    short, more = {**fields, "steps": 2}, {**fields, "steps": 4, "log_every": 3}
    train(smoke("cogpo", **short), tmp_path)
    with pytest.raises(UserError, match=r"planned for 2 steps, has done 2 and would now have 4.*on_extend=rewarm"):
        train(smoke("cogpo", **more), tmp_path)
    report = train(smoke("cogpo", **more, **{"optimizer.on_extend": "rewarm"}), tmp_path)
    assert "config.steps is 4, was 2" in capsys.readouterr().out
    assert report["steps"] == 4
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    # Two cycles of a run of two steps: the peak, then half way down.
    assert lines[2]["learning_rate"] == pytest.approx(lines[0]["learning_rate"])
    assert lines[3]["learning_rate"] == pytest.approx(lines[1]["learning_rate"])
    again = train(smoke("cogpo", **more), tmp_path)
    assert again["steps"] == 4, "the same length again asks nothing"


@pytest.mark.slow
def test_epochs_added_to_a_finished_run_are_taken(tmp_path, fields):
    changes = {**fields, "steps": 0, "epochs": 1, "data.train_split": "train[:6]", "optimizer.schedule": "constant"}
    changes["optimizer.warmup"] = 0
    first = train(smoke("cogpo", **changes), tmp_path / "parts")["steps"]
    both = train(smoke("cogpo", **{**changes, "epochs": 2}), tmp_path / "parts")["steps"]
    assert both > first
    train(smoke("cogpo", **{**changes, "epochs": 2}), tmp_path / "whole")
    ours, theirs = final_arrays(tmp_path / "parts"), final_arrays(tmp_path / "whole")
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


@pytest.mark.process
def test_a_second_run_in_a_workdir_is_refused(tmp_path, fields):
    program = (
        "import sys; from pathlib import Path; from smallr.core.locks import FolderLock\n"
        "FolderLock(Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [os.sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"process {holder.pid} on "):
        Trainer(smoke("cogpo", **fields), tmp_path)
    holder.kill()
    holder.communicate()
    with Trainer(smoke("cogpo", **fields), tmp_path):
        pass


@pytest.mark.process
def test_bad_input_ends_with_one_line_and_failure(tmp_path):
    done = run(CONFIG, tmp_path, "--config.data.train=nowhere.jsonl", check=False)
    assert done.returncode == 1
    assert "nowhere.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


def test_workdir_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match=str(blocked)):
        Trainer(smoke("cogpo"), blocked / "run")
