"""The loop: step, log, evaluate, save; stop when asked; end with a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.core.sharding import make_mesh
from smallr.data.batch import Batch
from smallr.models.decoder import Decoder
from smallr.training import report
from smallr.training.digest import tree_digest
from smallr.training.evaluation import collect, remembered
from smallr.training.flops import peak_flops
from smallr.training.metrics import MetricsWriter
from smallr.training.objective import Summariser
from smallr.training.progress import Progress, log
from smallr.training.setup import Run, prepare
from smallr.training.signals import StopSignal
from smallr.training.splits import PrepareRows, Split
from smallr.training.step import TrainState
from smallr.training.timing import Clock, Timed


class NonFiniteError(RuntimeError):
    """Loss or gradient is NaN or infinite."""


# Metrics of a model as it is; `smallr.evals.in_training` makes one of `config.benchmark`.
Benchmark = Callable[[Decoder], dict[str, float]]


def train(
    config: ConfigDict,
    workdir: Path,
    open_benchmark: Callable[[ConfigDict, Mesh], Benchmark | None] = lambda config, mesh: None,
    prepare_rows: PrepareRows = lambda rows: rows,
) -> dict[str, Any]:
    """Trains as `config` says, in `workdir`; goes on from the newest checkpoint there.

    Args:
      config: of the run.
      workdir: of checkpoints, metrics and the report.
      open_benchmark: makes what is measured besides the held-out rows; it is asked before the model is loaded.
      prepare_rows: what is done with the rows of both splits before they are checked.

    Returns:
      The report, as written to `workdir/report.json`.

    Raises:
      UserError: configuration, data or model that cannot be used; before the first step.
      NonFiniteError: the loss or the gradient stopped being finite.
    """
    clock = Clock()
    mesh = make_mesh(**config.mesh)
    peak = peak_flops(config.compute.dtype)  # measured on a CPU, so before the mesh claims the devices
    with jax.set_mesh(mesh), StopSignal() as stop:
        benchmark = open_benchmark(config, mesh)
        if benchmark is None and config.benchmark.name:
            raise UserError(
                f"config.benchmark.name={config.benchmark.name}: give train() smallr.evals.in_training.open_benchmark"
            )
        run, state = prepare(config, workdir, mesh, clock, prepare_rows)
        first = int(state.step)
        writer = MetricsWriter(workdir, resume_step=first)
        costs = report.costs(run, peak)
        report.start(run, costs, clock)
        baseline = run.baseline if run.baseline is not None else evaluate_start(run, state, writer)
        if first == 0:
            measure(run, state, benchmark, writer, 0)
        clock.lap("evaluation")
        state, stopped = fit(run, state, baseline, costs, writer, stop, benchmark)
        clock.lap("training")
        final = None if stopped else evaluate(run, state, writer, int(state.step))
        if not stopped:
            measure(run, state, benchmark, writer, int(state.step))
        clock.lap("evaluation")
        run.checkpointer.close()
        writer.close()
        return report.finish(run, int(state.step), baseline, final, clock)


def fit(
    run: Run,
    state: TrainState,
    baseline: dict[str, float],
    costs: report.Costs,
    writer: MetricsWriter,
    stop: StopSignal,
    benchmark: Benchmark | None = None,
) -> tuple[TrainState, bool]:
    """Takes the remaining steps; returns the state, and whether a signal ended the run early."""
    config, first = run.config, int(state.step)
    batches = Timed(run.training.batches(run.mesh, first, run.steps - first))
    pending = Pending(run, costs, writer, batches)
    with Progress(first, run.steps) as progress:
        for n, batch in enumerate(batches, first + 1):
            state, metrics, examples = run.step(state, batch, run.reference, run.trained.frozen)
            pending.add(n, metrics, examples)
            last, stopping = n == run.steps, stop.should_stop(n)
            saving = last or stopping or n % config.checkpoint.every == 0
            evaluating = not last and config.eval_every > 0 and n % config.eval_every == 0
            measuring = not last and config.benchmark.every > 0 and n % config.benchmark.every == 0
            if saving or evaluating or measuring or n % config.log_every == 0:
                progress.update(n, **pending.flush())  # before saving, so that only finite states are saved
            if evaluating:
                evaluate(run, state, writer, n)
            if measuring:
                measure(run, state, benchmark, writer, n)
            if evaluating or measuring:
                pending.restart_clock()
            if saving:
                run.checkpointer.save(n, state, _metadata(run, baseline))
            if stopping and not last:
                log(f"asked to stop: saved step {n} of {run.steps}; the same command goes on from there")
                return state, True
    return state, False


def _metadata(run: Run, baseline: dict[str, float]) -> dict[str, Any]:
    """What a checkpoint holds beside the state."""
    return {"baseline": baseline, "data": run.fingerprint, "frozen": run.trained.digest, "origin": run.origin}


class Pending:
    """Metrics of the steps since the last log line, left on the device until then."""

    def __init__(self, run: Run, costs: report.Costs, writer: MetricsWriter, batches: Timed[Batch]):
        self._run, self._costs, self._writer, self._batches = run, costs, writer, batches
        self._summarise = run.objective.summariser()
        self._steps: list[tuple[int, dict[str, Array], dict[str, Array]]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leaves the time since the last flush out of the speeds."""
        self._since, self._waited = time.perf_counter(), self._batches.waited

    def add(self, n: int, metrics: dict[str, Array], examples: dict[str, Array]) -> None:
        """Takes what step n returned."""
        self._steps.append((n, metrics, examples))

    def flush(self) -> dict[str, float]:
        """Waits for the steps, checks and logs them; returns what the progress bar shows.

        Raises:
          NonFiniteError: a step's loss or gradient norm is not finite.
        """
        steps = [(n, *values) for n, *values in jax.device_get(self._steps)]
        seconds = time.perf_counter() - self._since
        for n, metrics, examples in steps:
            if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])):
                raise NonFiniteError(self._describe(n, metrics, examples))
        tokens = sum(int(metrics["tokens"]) for _, metrics, _ in steps)
        line = {
            "loss": float(np.mean([metrics["loss"] for _, metrics, _ in steps])),
            **summary_of(self._run.training, self._summarise, [examples for *_, examples in steps]),
            "grad_norm": float(np.mean([metrics["grad_norm"] for _, metrics, _ in steps])),
            "learning_rate": float(steps[-1][1]["learning_rate"]),
            "tokens_per_second": tokens / seconds,
            "seconds_per_step": seconds / len(steps),
            "input_wait": (self._batches.waited - self._waited) / seconds,
            "padding": 1 - tokens / (len(steps) * self._costs.slots),
        }
        if self._costs.peak:
            line["mfu"] = self._costs.flops * len(steps) / seconds / self._costs.peak
        self._writer.write(steps[-1][0], line, split="train")
        self._steps.clear()
        self.restart_clock()
        return line

    def _describe(self, n: int, metrics: dict[str, Array], examples: dict[str, Array]) -> str:
        index, loss = examples["example"], examples["loss"]
        rows = self._run.training.examples.rows
        bad = sorted(rows[index[(index >= 0) & ~np.isfinite(loss)]].tolist())
        whole = sorted(rows[index[index >= 0]].tolist())
        saved = self._run.checkpointer.latest_step()
        blame = (
            f"not finite in rows {bad}"
            if bad
            else "finite in every row, so the gradient or an earlier update is at fault"
        )
        rescue = f"step {saved} in {self._run.workdir / 'checkpoints'}" if saved is not None else "none was saved yet"
        return (
            f"step {n}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']}.\n"
            f"  rows of {self._run.config.data.train} in this step: {whole}; the loss is {blame}\n"
            f"  last finite checkpoint: {rescue}\n"
            "  look at these rows, or lower config.optimizer.learning_rate"
        )


def evaluate_start(run: Run, state: TrainState, writer: MetricsWriter) -> dict[str, float]:
    """The evaluation before the first step: remembered where these weights met these rows and this objective before."""
    if run.heldout is None:
        return {}
    parts = (
        tree_digest(state.params),
        run.trained.start_digest(),
        run.heldout.examples.fingerprint,
        run.heldout.plan.shape,
        run.config.compute.dtype,
        run.config.objective.to_json(sort_keys=True),
    )
    metrics = remembered(" ".join(map(str, parts)), lambda: heldout_metrics(run, state))
    if metrics:
        writer.write(0, metrics, split="eval")
    return metrics


def evaluate(run: Run, state: TrainState, writer: MetricsWriter, n: int) -> dict[str, float]:
    """Metrics of the held-out rows, logged as step n; empty without held-out rows."""
    if run.heldout is None:
        return {}
    metrics = heldout_metrics(run, state)
    writer.write(n, metrics, split="eval")
    return metrics


def measure(run: Run, state: TrainState, benchmark: Benchmark | None, writer: MetricsWriter, n: int) -> None:
    """Metrics of the benchmark, if there is one, logged as step n and said."""
    if benchmark is None:
        return
    metrics = benchmark(run.trained.policy.decoder(state.params, run.trained.frozen))
    writer.write(n, metrics, split="benchmark")
    name = run.config.benchmark.name
    log(f"step {n}: {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))


def heldout_metrics(run: Run, state: TrainState) -> dict[str, float]:
    """One pass over the held-out rows."""
    reference = run.reference if state.reference is None else state.reference
    values = collect(
        lambda batch: run.evaluation(state.params, batch, reference),
        run.heldout.one_pass(run.mesh),
        len(run.heldout.examples),
    )
    summary = run.objective.summariser()(values, run.heldout.facts())
    return {"loss": float(values["loss"].sum() / values["denominator"].sum()), **summary}


def summary_of(split: Split, summarise: Summariser, outputs: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Summary of the examples that some steps have seen."""
    values = {name: np.concatenate([output[name].ravel() for output in outputs]) for name in outputs[0]}
    index = values.pop("example")
    real = index >= 0
    columns = {name: column[index[real]] for name, column in split.facts().items()}
    return summarise({name: value[real] for name, value in values.items()}, columns)
