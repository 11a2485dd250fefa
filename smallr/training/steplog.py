"""Reads the metrics of steps from the device one step behind, and writes them as log lines."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array

from smallr.data.batch import Batch
from smallr.training.objective import Summariser
from smallr.training.splits import Split
from smallr.training.timing import Timed

if TYPE_CHECKING:
    from smallr.training.trainer import Trainer


class NonFiniteError(RuntimeError):
    """Says that loss or gradient is NaN or infinite."""


class StepLog:
    """Keeps what steps returned on the device until it is read, checks it and writes a log line every so many steps.

    The loop reads step n after it has dispatched step n + 1, so that the device has work while the host waits.

    Args:
      trainer: whose steps they are.
      batches: that the steps are taken on.
    """

    def __init__(self, trainer: Trainer, batches: Timed[Batch]):
        self._trainer, self._batches = trainer, batches
        self._summarise = trainer.objective.summariser()
        self._steps: list[tuple[int, dict[str, Array], dict[str, Array]]] = []
        self._seen = int(trainer.files.last_metrics("train").get("num_tokens", 0))
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves the time since the last reading out of the speeds."""
        self._since, self._waited = time.perf_counter(), self._batches.waited

    def add(self, n: int, metrics: dict[str, Array], examples: dict[str, Array]) -> None:
        """Takes what step n returned, and waits for step n - 1: no more are under way, so that a stop is prompt."""
        if self._steps:
            jax.block_until_ready(self._steps[-1][1])
        self._steps.append((n, metrics, examples))

    def read(self, until: int, *, whole_lines: bool = False) -> dict[str, float]:
        """Waits for the steps up to `until`, checks them and writes their log lines.

        Args:
          until: the last step to wait for.
          whole_lines: do nothing unless a log line ends with that step.

        Returns:
          The last line; empty if there was nothing to read.

        Raises:
          NonFiniteError: a step's loss or gradient norm is not finite.
        """
        every, line = self._trainer.config.log_every, {}
        if whole_lines and until % every:
            return {}
        ready = [step for step in self._steps if step[0] <= until]
        self._steps = self._steps[len(ready) :]
        if not ready:
            return {}
        read = [(n, *values) for n, *values in jax.device_get(ready)]
        for n, metrics, examples in read:
            if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])):
                raise NonFiniteError(describe_failure(self._trainer, n, metrics, examples))
        seconds = (time.perf_counter() - self._since) / len(read)
        waited = (self._batches.waited - self._waited) / len(read)
        for _, steps in itertools.groupby(read, lambda step: (step[0] - 1) // every):
            line = self._write(list(steps), seconds, waited)
        self.restart_clock()
        return line

    def _write(self, steps: list[tuple[int, dict, dict]], seconds: float, waited: float) -> dict[str, float]:
        """Writes the line of some steps, each of which took so many seconds."""
        costs, n = self._trainer.costs, steps[-1][0]
        tokens = sum(int(metrics["tokens"]) for _, metrics, _ in steps)
        self._seen += tokens
        line = {
            "loss": float(np.mean([metrics["loss"] for _, metrics, _ in steps])),
            **summary_of(self._trainer.training, self._summarise, [examples for *_, examples in steps]),
            "grad_norm": float(np.mean([metrics["grad_norm"] for _, metrics, _ in steps])),
            "learning_rate": float(steps[-1][1]["learning_rate"]),
            "epoch": self._trainer.epoch(n),
            "num_tokens": self._seen,
            "tokens_per_second": tokens / (seconds * len(steps)),
            "seconds_per_step": seconds,
            "input_wait": waited / seconds,
            "padding": 1 - tokens / (len(steps) * costs.tokens),
        }
        if costs.peak:
            line["mfu"] = costs.flops / seconds / costs.peak
        self._trainer.files.write_metrics(n, line, "train")
        return line


def summary_of(split: Split, summarise: Summariser, outputs: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Summarises the examples that some steps have seen."""
    values = {name: np.concatenate([output[name].ravel() for output in outputs]) for name in outputs[0]}
    index = values.pop("example")
    real = index >= 0
    columns = {name: column[index[real]] for name, column in split.static_columns().items()}
    return summarise({name: value[real] for name, value in values.items()}, columns)


def describe_failure(trainer: Trainer, n: int, metrics: Mapping[str, Any], examples: Mapping[str, Any]) -> str:
    """Says in which step and rows a number was not finite, and what can be done."""
    index, loss = examples["example"], examples["loss"]
    bad = _places(trainer.training, index[(index >= 0) & ~np.isfinite(loss)])
    whole = _places(trainer.training, index[index >= 0])
    saved = trainer.files.checkpointer.latest_step()
    blame = (
        f"not finite in rows [{bad}]"
        if bad
        else "finite in every row, so the gradient or an earlier update is at fault"
    )
    rescue = f"step {saved} in {trainer.workdir / 'checkpoints'}" if saved is not None else "none was saved yet"
    return (
        f"step {n}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}.\n"
        f"  rows of {trainer.training.examples.report.source} in this step: [{whole}]; the loss is {blame}\n"
        f"  last finite checkpoint: {rescue}\n"
        "  look at these rows, or lower config.optimizer.learning_rate"
    )


def _places(split: Split, index: np.ndarray) -> str:
    """Writes the rows that examples are from, ascending."""
    examples = split.examples
    if len(examples.sources) == 1:
        return ", ".join(str(examples.report.number(row)) for row in sorted(examples.rows[index].tolist()))
    return ", ".join(examples.place(i) for i in sorted(index.tolist()))
