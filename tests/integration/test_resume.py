"""Kill and resume, in processes of their own: the end is the same, bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import time

import numpy as np
import pytest

from tests.runs import ROOT, command, environment, final_arrays, metrics, run

CONFIG = "configs/cogpo.py:smoke"
STEPS = 24
OVERRIDES = (
    "--config.data.eval=",
    f"--config.steps={STEPS}",
    "--config.eval_every=0",
    "--config.checkpoint.every=1",
    "--config.batch.row_length=384",
)


def start(workdir, *overrides):
    return subprocess.Popen(
        command(CONFIG, workdir, *OVERRIDES, *overrides),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def steps_saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def wait_for(process, condition, seconds=120):
    """Until `condition()`, or the end of the process, whichever comes first."""
    end = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the run did not get that far"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    run(CONFIG, workdir, *OVERRIDES)
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


def test_killed_at_five_random_moments_equals_uninterrupted(tmp_path, uninterrupted):
    rng = random.Random(0)
    saving = []
    for kill in range(5):
        process = start(tmp_path)
        before = max(steps_saved(tmp_path), default=0)
        if kill % 2:  # inside a save: its temporary folder is there
            wait_for(process, lambda: max(steps_saved(tmp_path), default=0) > before)  # noqa: B023
            wait_for(process, lambda: any((tmp_path / "checkpoints").glob("*tmp*")))
        else:
            target = before + rng.randint(1, 3)
            wait_for(process, lambda: max(steps_saved(tmp_path), default=0) >= target)  # noqa: B023
            time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        saving.append(any((tmp_path / "checkpoints").glob("*tmp*")))
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    assert any(saving), "no kill hit a save"
    output = run(CONFIG, tmp_path, *OVERRIDES).stdout
    assert "resuming" in output
    assert_same_end(tmp_path, uninterrupted)


def test_sigterm_saves_and_exits_with_success(tmp_path, uninterrupted):
    process = start(tmp_path, "--config.checkpoint.every=1000")
    wait_for(process, lambda: (tmp_path / "metrics.jsonl").exists() and len(metrics(tmp_path)) >= 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "asked to stop" in output
    assert 3 <= steps_saved(tmp_path)[-1] < STEPS
    run(CONFIG, tmp_path, *OVERRIDES)
    assert_same_end(tmp_path, uninterrupted)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, uninterrupted):
    run(CONFIG, tmp_path, *OVERRIDES, f"--config.steps={STEPS}", "--config.checkpoint.keep_last=3")
    newest = steps_saved(tmp_path)[-1]
    data = [path for path in (tmp_path / "checkpoints" / str(newest) / "state").rglob("*") if path.is_file()]
    largest = max(data, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    done = run(CONFIG, tmp_path, *OVERRIDES)
    assert f"resuming {tmp_path} at step {newest - 1}" in done.stdout
    assert str(newest) in done.stderr
    assert_same_end(tmp_path, uninterrupted)


def test_resuming_with_another_objective_stops_and_shows_the_difference(tmp_path, uninterrupted):
    done = run(CONFIG, uninterrupted, *OVERRIDES, "--config.objective.beta.small=0.3", check=False)
    assert done.returncode != 0
    assert "objective.beta.small" in done.stderr
    assert "0.3" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_may_change_is_noted_and_training_goes_on(tmp_path):
    run(CONFIG, tmp_path, *OVERRIDES, "--config.steps=2")
    done = run(CONFIG, tmp_path, *OVERRIDES, "--config.steps=3", "--config.log_every=3")
    assert "config.steps is 3, was 2" in done.stdout
    assert steps_saved(tmp_path)[-1] == 3


def test_bad_input_ends_with_one_line_and_failure(tmp_path):
    done = run(CONFIG, tmp_path, "--config.data.train=nowhere.jsonl", check=False)
    assert done.returncode == 1
    assert "nowhere.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(CONFIG, tmp_path, "--config.optimizer.learning_rte=1", check=False)
    assert done.returncode != 0
    assert "learning_rate" in done.stderr


def test_workdir_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run(CONFIG, blocked / "run", check=False)
    assert done.returncode == 1
    assert str(blocked) in done.stderr
    assert "Traceback" not in done.stderr
