"""Finds the best evaluation of a run, by one metric of the held-out rows, and says when it stops improving."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.core.files import write_json

FILE = "best.json"  # in the workdir: step, metric and value of the best evaluation
_LOWER_IS_BETTER = ("loss", "nll", "kl", "entropy", "perplexity", "length_drift", "hardest_quarter_share")


@dataclasses.dataclass
class Best:
    """Follows one metric over the evaluations of a run; the model as it was loaded does not count.

    Attributes:
      metric: of the held-out rows; empty: none is followed.
      sign: 1 if a greater value is better, -1 if a smaller one is.
      patience: evaluations without a better one after which the run ends; 0: it goes on.
      min_delta: what counts as better: more than so much above (or below) the best one.
      step: of the best evaluation; 0 before the first.
      value: its metric.
      metrics: all that it measured.
      worse: evaluations since then.
      seen: step of the newest evaluation.
    """

    metric: str
    sign: int
    patience: int
    min_delta: float
    step: int = 0
    value: float = math.nan
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict, compare=False)
    worse: int = 0
    seen: int = 0

    @classmethod
    def from_config(cls, config: ConfigDict) -> Self:
        """Makes it from `config.best`.

        Raises:
          UserError: fields that cannot be used, or do not go together.
        """
        fields = config.best
        if fields.mode not in ("auto", "min", "max"):
            raise UserError(f"config.best.mode: {fields.mode!r} must be one of: auto, min, max")
        if fields.patience < 0 or fields.min_delta < 0:
            raise UserError(
                f"config.best: patience={fields.patience} and min_delta={fields.min_delta} must not be negative"
            )
        if fields.patience and not (fields.metric and config.eval_every):
            raise UserError(
                f"config.best.patience={fields.patience} counts evaluations while training: set config.best.metric (e.g. "
                "loss) and config.eval_every too"
            )
        lower = fields.mode == "min" or (fields.mode == "auto" and fields.metric.startswith(_LOWER_IS_BETTER))
        return cls(fields.metric, -1 if lower else 1, fields.patience, fields.min_delta)

    def check(self, metrics: Mapping[str, float]) -> None:
        """Raises UserError unless the held-out rows have the metric; there are none without such rows."""
        if not self.metric or self.metric in metrics:
            return
        if not metrics:
            raise UserError(
                f"config.best.metric={self.metric}: there are no held-out rows; set config.data.eval_split or "
                "config.data.eval_fraction"
            )
        nearest = difflib.get_close_matches(self.metric, metrics, n=1)
        meant = f"did you mean {nearest[0]}? " if nearest else ""
        raise UserError(
            f"config.best.metric: the held-out rows have no metric {self.metric!r}; {meant}There are: {', '.join(sorted(metrics))}"
        )

    def see(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Takes the metrics of an evaluation; returns whether it is the best so far. A step is counted once.

        A value that is not finite is never better.
        """
        if not self.metric or step <= self.seen:
            return False
        self.seen = step
        value = float(metrics[self.metric])
        if math.isfinite(value) and (self.step == 0 or self.sign * (value - self.value) > self.min_delta):
            self.step, self.value, self.metrics, self.worse = step, value, metrics, 0
            return True
        self.worse += 1
        return False

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Takes the lines of evaluations before a run was gone on with, in all processes those that process 0 has."""
        if not self.metric:
            return
        for line in lines:
            if line["split"] == "eval" and self.metric in line:
                self.see(line["step"], line)
        if jax.process_count() > 1:
            mine = np.array([self.step, self.value, self.worse, self.seen], np.float64)
            theirs = np.asarray(
                multihost_utils.broadcast_one_to_all(mine.view(np.uint32))
            )  # as bits: jax has no float64
            step, self.value, worse, seen = theirs.view(np.float64).tolist()
            self.step, self.worse, self.seen = int(step), int(worse), int(seen)

    @property
    def exhausted(self) -> bool:
        """Returns whether so many evaluations were no better that the run ends."""
        return 0 < self.patience <= self.worse

    def save(self, workdir: Path) -> None:
        """Writes what is known to the workdir, so that other commands take the checkpoint of that step."""
        if self.step and jax.process_index() == 0:
            write_json(workdir / FILE, {"step": self.step, "metric": self.metric, "value": self.value})

    def forget(self, workdir: Path) -> None:
        """Removes what an earlier end of the run has written: while it goes on, its newest checkpoint stands for it."""
        if jax.process_index() == 0:
            (workdir / FILE).unlink(missing_ok=True)

    def verdict(self) -> str:
        """Says why the run ends."""
        return f"{self.worse} evaluations in turn were no better than that of {self.line()}: the run ends"

    def line(self) -> str:
        """Says which evaluation was the best one."""
        return f"step {self.step}, {self.metric} {self.value:.4f}"
