"""Stops a run on request: SIGTERM (a scheduler wants the machine) and SIGINT (Ctrl-C)."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils


class StopSignal:
    """Turns SIGTERM and the first SIGINT into a wish to stop, while open; the loop asks `should_stop` and saves first.

    A second SIGINT raises KeyboardInterrupt: stop at once, without saving. The handlers of before come back
    on leaving. Outside the main thread Python allows no handlers: then signals keep their effect, and a note
    says so.

    In a run of several processes SIGTERM stays with JAX, which passes the word on and finds a step that no
    process has reached yet; all of them stop there. A Ctrl-C is passed to it as a SIGTERM.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is not threading.main_thread():
            logging.warning("not in the main thread: SIGTERM and Ctrl-C will end the run without saving")
            return self
        wanted = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
        for number in wanted:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def should_stop(self, step: int) -> bool:
        """Returns whether to save and stop after this step; the same answer in all processes.

        Args:
          step: finished steps. With several processes every one of them must ask after each of its steps.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: a handler that was not installed from Python and cannot be installed from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        # A handler may interrupt a print: write past Python's buffers.
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this step (Ctrl-C: at once, unsaved)\n".encode())
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
