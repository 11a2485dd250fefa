import os
import signal
import socket
import threading

import pytest
from absl import logging as absl_logging

from smallr.training.signals import StopSignal
from tests.runs import environment


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_only_asks_to_stop(number, capfd):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.should_stop(1)
        os.kill(os.getpid(), number)
        assert stop.should_stop(2)
        assert stop.should_stop(3)
        assert signal.getsignal(number) != before
    assert signal.getsignal(number) is before
    assert f"{number.name}: stopping after this step" in capfd.readouterr().err


def test_a_second_ctrl_c_stops_at_once_and_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = StopSignal()

    def press_ctrl_c_twice() -> None:
        with stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.should_stop(1)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c_twice()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_sigterm_still_waits_for_the_save():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.should_stop(1)


def test_each_use_starts_afresh():
    with StopSignal():
        os.kill(os.getpid(), signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.should_stop(1)


def test_outside_the_main_thread_it_does_nothing_and_says_so(caplog):
    absl_logging.get_absl_logger().addHandler(caplog.handler)
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with StopSignal() as stop:
            seen.append((stop.should_stop(1), signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    absl_logging.get_absl_logger().removeHandler(caplog.handler)
    assert seen == [(False, True)]
    assert "not in the main thread" in caplog.text


_TWO = """
import os, signal, sys, time, jax
jax.distributed.initialize(f"localhost:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
from smallr.training.signals import StopSignal
from tests.runs import environment
with StopSignal() as stop:
    for step in range(1, 1000):
        time.sleep(0.01 * (1 + int(sys.argv[1])))  # one is faster than the other
        if step == 20 and sys.argv[1] == "1":
            os.kill(os.getpid(), getattr(signal, sys.argv[3]))
        if stop.should_stop(step):
            break
print("stopped at", step, flush=True)
"""


@pytest.mark.process
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_two_processes_stop_at_the_same_step_when_one_is_asked(name, forks):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    outputs = forks.run([["-c", _TWO, str(index), port, name] for index in range(2)], [environment()] * 2)
    steps = [int(line.split()[-1]) for out in outputs for line in out.splitlines() if line.startswith("stopped at")]
    assert len(steps) == 2
    assert steps[0] == steps[1], steps
    assert 20 < steps[0] < 999
