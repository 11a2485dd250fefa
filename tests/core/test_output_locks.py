"""Two processes that write the same output: the second is refused before it works, and the first's result stays."""

from __future__ import annotations

import json
import os
import threading

import pytest

from smallr.cli import main
from smallr.core.errors import UserError
from smallr.core.files import host_name
from smallr.core.locks import LockedError, output_lock
from smallr.models.export import new_folder
from smallr.training.scoring import ScoreOptions, write_scores


@pytest.fixture
def held(tmp_path):
    """An output that another thread, as another process would, is writing."""
    path, taken, ended = tmp_path / "out", threading.Event(), threading.Event()

    def hold():
        with output_lock(path):
            taken.set()
            ended.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    yield path
    ended.set()
    thread.join()
    assert not path.exists()
    assert not [each.name for each in tmp_path.iterdir() if "lock" in each.name]


def refused(path):
    return pytest.raises(LockedError, match=rf"{path}: process {os.getpid()} on {host_name()}")


def test_scores(held):
    with refused(held):
        write_scores(ScoreOptions("no-such-model", "no-such-data"), held)


def test_models(held):
    with refused(held), new_folder(held):
        pass


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "hello", "--model=tiny-random", "--out=OUT"],
        ["score", "--model=tiny-random", "--data=builtin:arithmetic/rationale", "--out=OUT"],
        ["labels", "--model=tiny-random", "--data=builtin:arithmetic/rationale", "--out=OUT"],
        ["convert", "--from=tiny-random", "--to=OUT"],
        ["scratch", "--texts=builtin:arithmetic/rationale", "--out=OUT"],
        ["pairs", "--crv=none", "--out=OUT"],
        ["builtin", "--out=OUT"],
    ],
)
def test_every_command_that_writes(held, capsys, command):
    assert main.main([part.replace("OUT", str(held)) for part in command]) == 1
    told = capsys.readouterr().err
    assert f"{held}: process {os.getpid()} on {host_name()}" in told
    assert "works on this output. Wait for it, stop it, or choose another place." in told


def test_it_is_free_afterwards_and_after_a_kill(tmp_path):
    lock = tmp_path / ".out.lock"
    lock.write_text(json.dumps({"host": host_name(), "pid": 2**22 + 1}))  # what a killed process leaves
    with output_lock(tmp_path / "out"), output_lock(tmp_path / "other"), output_lock(tmp_path / "out"):
        assert lock.exists()
    assert not lock.exists()


def test_another_machine_is_believed_while_it_is_alive(tmp_path):
    (tmp_path / ".out.lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    with pytest.raises(UserError, match=r"process 1 on elsewhere works on this output; if it has ended, the lock is"):
        output_lock(tmp_path / "out").acquire()


def test_a_pipe_may_have_several_writers(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with output_lock(tmp_path / "pipe"):
        assert [each.name for each in tmp_path.iterdir()] == ["pipe"]
