"""Trains one model: in a whole run, or in a method's rounds of generate, score and train."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import jax
import numpy as np
from flax import nnx
from jaxtyping import Array
from ml_collections import ConfigDict

from smallr.core import traced
from smallr.core.errors import UserError
from smallr.core.imports import import_beside
from smallr.core.sharding import make_mesh
from smallr.data.batch import Batch
from smallr.models.attention_choice import Choice
from smallr.models.decoder import Decoder
from smallr.models.heads import split_targets
from smallr.training import attention, checks, report
from smallr.training.best import Best
from smallr.training.cached_scores import heldout_values, reference_columns
from smallr.training.checkpoints import CheckpointError
from smallr.training.flops import peak_flops
from smallr.training.foresight import foresee
from smallr.training.opening import open_trained
from smallr.training.optimizer import check_groups, extend, make_optimizer, renewed
from smallr.training.policy import NOTHING, ParameterPartition, prepare_policy
from smallr.training.progress import Progress, announce, headline, log
from smallr.training.publishing import Publisher
from smallr.training.reading import WeightReader
from smallr.training.references import Reference, ReferenceOptions, make_reference, stored_columns
from smallr.training.rounds import CompiledSteps, Renewal, Round, configured_step
from smallr.training.signals import StopSignal
from smallr.training.splits import Split, load_split, make_split, name_shared
from smallr.training.step import (
    Constants,
    Evaluation,
    TrainState,
    abstract_state,
    init_state,
)
from smallr.training.steplog import StepLog
from smallr.training.timing import Clock, Timed
from smallr.training.workdir import Workdir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Rows = datasets.Dataset | Sequence[Mapping[str, Any]]
# Metrics of a model as it is; `smallr.evals.in_training` makes one of `config.benchmark`.
Benchmark = Callable[[Decoder], dict[str, float]]


class Trainer:
    """Trains one model in one workdir.

        Trainer(config).fit()                             # all of it: data, weights, reference, steps, report

        with Trainer(config, workdir) as trainer:         # or by rounds
            trainer.load()
            for round in range(rounds):
                trainer.set_data(rows_from(trainer.decoder(), round))
                trainer.fit(until=(round + 1) * steps)

    A workdir that holds checkpoints is resumed, bit for bit. Between rounds parameters and, if wanted, the optimizer's
    state go on, and programs are kept where the shape of rows allows.

    Attributes:
      config, workdir: of the run.
      files: what is in the workdir.
      publisher: writes and uploads folders for the Hugging Face ecosystem.
      mesh: of all arrays.
      benchmark: what is measured besides the held-out rows; `fit` wants one if `config.benchmark` names one.
      objective: what the steps minimise.
      source: of the model.
      training, heldout: the rows, once there are some.
      attention: that the run computes with; once the model is loaded.
      partition: how parameters become decoders, and those that are not trained; once the model is loaded.
      reference: of the objective; likewise.
      step: finished steps.
      steps: of the whole run.
      best: the best evaluation so far, by the metric that the config names.
      stopped: whether a signal ended the last `fit`.
      costs: work of a step.
      horizons: of the learning rates.
      round: the rows that are trained on now, and the step at which that began.
      baseline: metrics of the held-out rows before the first step, and the fingerprint of these rows.
      state: parameters, optimizer's state and what else a step changes; once the model is loaded.
      evaluation: gives the values of a batch's examples under any parameters; likewise.
      program: the compiled step, once there are rows too.

    Raises:
      UserError: a field of the config, a model or a workdir that cannot be used; another run in the workdir.
    """

    def __init__(self, config: ConfigDict, workdir: str | Path | None = None, benchmark: Benchmark | None = None):
        """Checks what is cheap to check, and opens the model's files, not its weights.

        Without a workdir a new one is made under `runs/`.
        """
        self.config, self.benchmark = config, benchmark
        self.workdir = Path(workdir) if workdir else Path("runs", config.objective.name, time.strftime("%Y%m%d-%H%M%S"))
        self.clock = Clock()
        self.mesh = make_mesh(**config.mesh)
        self.objective = checks.check_run(config, self.mesh)
        self.source = open_trained(config.model, config.tokenizer, allow_nonfinite=config.allow_nonfinite)
        self._weights = WeightReader(self.source, config, self.mesh)
        self.training: Split | None = None
        self.heldout: Split | None = None
        self.attention: Choice | None = None
        self.partition: ParameterPartition | None = None
        self.reference = Reference.none()
        self.step = self.steps = 0
        self.stopped, self.costs = False, report.Costs()
        self.baseline: dict[str, Any] | None = None
        self._scored = 0  # steps whose rows have what the reference brings
        self.round = Round()
        self._renewal = Renewal()
        self.state: TrainState | None = None
        self._compiled = CompiledSteps()
        self.best = Best.from_config(config)
        self.publisher = Publisher(config, self.workdir, self.source)
        self.files = Workdir(self.workdir, config)
        self.horizons = self.files.horizons

    # The run ----------------------------------------------------------------------------------------------------

    def fit(self, until: int | None = None) -> dict[str, Any]:
        """Trains to the end of the run, or to step `until` if that comes first.

        Returns:
          The report. It is written to the workdir when the run has ended or was stopped by a signal.

        Raises:
          UserError: data or a model that cannot be used; before the first step.
          NonFiniteError: the loss or the gradient stopped being finite.
        """
        try:
            self.plan()
            if until is not None and until <= self._done() and until < self.steps:
                self.load()
                return report.result(self, None)
            self.build()
            with jax.set_mesh(self.mesh), StopSignal() as stop:
                self.evaluate_before()
                self.take_steps(min(until or self.steps, self.steps), stop)
                return self.conclude()
        except BaseException:
            with contextlib.suppress(CheckpointError):  # the first error tells more
                self.close()
            raise

    def prepare(self) -> None:
        """Does all that comes before the next step and is not done yet."""
        self.plan()
        self.build()

    def plan(self) -> None:
        """Reads the rows, if there are none yet, counts the steps of the run and decides on its learning rates.

        The weights are read meanwhile.
        """
        if self.benchmark is None and self.config.benchmark.name:
            raise UserError(
                f"config.benchmark.name={self.config.benchmark.name}: give the Trainer a benchmark, "
                "smallr.evals.in_training.open_benchmark(config, trainer.mesh)"
            )
        self._peak = peak_flops(self.config.compute.dtype)  # measured on a CPU, so while nothing else computes
        if self.state is None:
            self._weights.begin()
            import_beside(*traced.imports())
        if self.training is None:
            self.load_data()
        if self.heldout is None:
            self.best.check({})
        self.steps = checks.total_steps(self.config, self.training)
        self.horizons = extend(self.config.optimizer, self.horizons, self.steps, self._done())
        if self.state is None:
            self._settle_attention()
            with jax.set_mesh(self.mesh):
                foresee(self)
            self.clock.lap("compile")

    def build(self) -> None:
        """Makes what the next step needs and is not there yet: weights, reference, programs."""
        with jax.set_mesh(self.mesh):
            self.load()
            kept = attention.to_json(self.attention)
            self.files.save_config(self.training.examples.fingerprint, self.horizons, kept)
            self.enter_round()
            self.prepare_reference()
            self.compile()
            self.costs = report.costs(self, self._peak)
            if self.files.open_metrics(self.step):
                self.best.replay(self.files.evaluations())
                self.best.forget(self.workdir)
                report.start(self)

    def take_steps(self, until: int, stop: StopSignal) -> None:
        """Trains to step `until`; stops before if a signal asks for it, and ends if evaluations improve no more."""
        self._end_if_exhausted()
        until = min(until, self.steps)
        batches = Timed(self.training.batches(self.mesh, self.step - self.round.start, until - self.step))
        steps = StepLog(self, batches)
        with Progress(self.step, self.steps) as progress:
            for batch in batches:
                metrics, examples = self.take(batch)
                steps.add(self.step, metrics, examples)
                self.stopped = stop.should_stop(self.step) and self.step < self.steps
                saving = self.step == until or self.stopped or self.step % self.config.checkpoint.every == 0
                evaluating, asking = self._due(self.config.eval_every), self._due(self.config.benchmark.every)
                publishing = self._due(self.config.checkpoint.hf_every)
                # All is read before anything is saved, so that only finite states are.
                if saving or evaluating or asking or publishing:
                    progress.update(self.step, **steps.read(self.step))
                elif line := steps.read(self.step - 1, whole_lines=True):
                    progress.update(self.step - 1, **line)
                if evaluating:
                    saving |= self.best.see(self.step, self.evaluate()) or self.best.exhausted
                if asking:
                    self.ask_benchmark()
                if publishing:
                    self.publisher.save(self)
                if evaluating or asking or publishing:
                    steps.restart_clock()
                if saving:
                    self.save()
                self._end_if_exhausted()
                if self.stopped or self.step == self.steps:
                    break
        if self.stopped:  # said when the bar is gone, since it breaks lines
            again = "the command of the whole job" if report.is_stage(self) else report.next_commands(self)[0]
            log(f"asked to stop: saved step {self.step} of {self.steps}; go on with: {again}")

    def _end_if_exhausted(self) -> None:
        """Makes this step the last one if evaluations have not improved for as long as the config allows."""
        if self.best.exhausted and self.step < self.steps:
            log(f"step {self.step}: {self.best.verdict()}")
            self.steps = self.step

    def epoch(self, step: int) -> float:
        """Returns how many passes over the rows of this round have been taken at a step."""
        return (step - self.round.start) / self.training.plan.stats(0).steps

    def take(self, batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
        """Dispatches one step, without waiting for it; returns its metrics and the values of its examples."""
        self.state, metrics, examples = self.program(self.state, batch, self._constants)
        self.step += 1
        return metrics, examples

    def conclude(self) -> dict[str, Any]:
        """Ends a run that has done its steps, or was stopped: evaluates, closes the workdir and writes the report."""
        self.clock.lap("training")
        ended, after = self.step == self.steps, None
        if not (ended or self.stopped):
            return report.result(self, None)
        if ended:
            after = self.evaluate()
            self.best.see(self.step, after)
            self.best.save(self.workdir)
            self.ask_benchmark()
            self.clock.lap("evaluation")
            self.publisher.save(self)
        self.close()
        return report.finish(self, after)

    # Data -------------------------------------------------------------------------------------------------------

    def load_data(self, rows: Rows | None = None, heldout: Rows | None = None) -> None:
        """Tokenises and packs the rows of the whole run: those that the config names, or what was made of them."""
        training = self._split("train", rows)
        self._take_data(training, self._split("eval", heldout, training))
        self.files.check_data(training.examples.fingerprint)

    def set_data(
        self, rows: Rows, heldout: Rows | None = None, *, renew_optimizer: bool = False, renew_reference: bool = False
    ) -> None:
        """Takes rows to train on from here on, in place of those before or of those that the config names.

        Rows that the newest checkpoint was trained on are gone on with; others begin with their first epoch.

        Args:
          rows: under our column names, a data set or a list of dicts.
          heldout: rows to evaluate on; None: those before, or those that the config names.
          renew_optimizer: begin with a new state of the optimizer, and with the schedule's beginning.
          renew_reference: take the weights as they are now as a cached reference; else it stays as it was.

        Raises:
          UserError: rows that cannot be used, or a reference that cannot be renewed.
        """
        if renew_reference and self.objective.reference != "cached":
            raise UserError(
                f"renew_reference: config.objective.reference={self.objective.reference} stays as it is; set it to cached"
            )
        if self.training is not None:
            checks.check_rounds(self.config)
        training = self._split("train", rows, self.training)
        keep = heldout is None and self.training is not None
        self._renewal = Renewal(renew_optimizer, renew_reference)
        self._take_data(training, self.heldout if keep else self._split("eval", heldout, training))

    def _split(self, name: str, rows: Rows | None, shaped_as: Split | None = None) -> Split | None:
        """Tokenises and packs rows, or those that the config names; None if it names none."""
        shape = shaped_as.plan.shape if shaped_as else None
        if rows is None:
            return load_split(self.config, self._tokenizer, self.objective, name, shape)
        if not isinstance(rows, datasets.Dataset):
            rows = datasets.Dataset.from_list([dict(row) for row in rows])
        source = str(self.config.data[name])
        return make_split(self.config, self._tokenizer, self.objective, rows, name, source, shape)

    @functools.cached_property
    def _tokenizer(self) -> PreTrainedTokenizerFast:
        return self.source.quick_tokenizer()  # of a GGUF file it takes a second to build

    def _take_data(self, training: Split, heldout: Split | None) -> None:
        checks.check_fit(self.source, training, heldout)
        name_shared(training, heldout)
        self.training, self.heldout = training, heldout
        self.clock.lap("data")

    def _done(self) -> int:
        """Returns the finished steps, those of a checkpoint that is not loaded yet included."""
        return self.step if self.state is not None else self.files.checkpointer.latest_step() or 0

    # Weights ----------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Loads the model, or goes on from the newest checkpoint, unless that is done."""
        if self.state is not None:
            return
        with jax.set_mesh(self.mesh):
            announce(f"reading the weights of {self.source.name} …")
            self.partition = self.read_policy()
            check_groups(self.config.optimizer, split_targets(self.partition.params)[0])
            options = ReferenceOptions.from_fields(self.config.objective)
            self.reference = make_reference(options, self.partition, self.partition.params)
            self._constants = Constants.of(self.partition.frozen, self.reference.params)
            self.evaluation = Evaluation(
                self.partition.policy,
                self.objective,
                self.mesh,
                chunk=self.config.compute.logp_chunk,
                reference=self.reference,
                constants=self._constants,
            )
            self.clock.lap("model")
            self._make_state()

    def read_policy(self) -> ParameterPartition:
        """Reads the model's file and splits its parameters as the config says."""
        self._settle_attention()
        decoder, digest = self._weights.take()
        attention.computing_with(self.attention.impl, self.attention.sequences, decoder)
        return prepare_policy(decoder, self.config, self.mesh, digest)

    def _settle_attention(self) -> None:
        if self.attention is None:
            compute = self.config.compute
            model = dataclasses.replace(self.source.config, dtype=compute.dtype, remat=compute.remat)
            self.attention = attention.settle_attention(self.config, model, self.training, self.files.attention)

    def _make_state(self) -> None:
        """Moves the loaded parameters into the state, or takes over the newest checkpoint in their place."""
        params, self.partition = self.partition.params, dataclasses.replace(self.partition, params=NOTHING)
        optimizer = make_optimizer(self.config.optimizer, lambda step: 0.0)
        over_data = self.config.optimizer.shard_over_data
        given = optimizer, self.config.seed, self.mesh, self.reference, over_data
        if self.files.checkpointer.latest_step() is None:
            self.state, self._sharding = init_state(params, *given)
            return
        abstract, self._sharding = abstract_state(params, *given)
        del params  # two states at once may not fit
        restored = self.files.checkpointer.restore_latest(abstract)
        checks.check_base(self.source, self.partition.digest, self.reference.digest, restored.metadata)
        self.state, self.step = restored.state, restored.step
        self.round = Round(**restored.metadata["round"])
        self.baseline = restored.metadata["baseline"]
        if restored.metadata["renewed"]:
            self.reference = dataclasses.replace(self.reference, digest=restored.metadata["reference"], renewed=True)
        log(f"resuming {self.workdir} at step {restored.step}")
        self.clock.lap("restore")

    def decoder(self) -> Decoder:
        """Returns the model as it is now."""
        self.load()
        with jax.set_mesh(self.mesh):
            decoder = self.partition.policy.decoder(self.state.params, self.partition.frozen)
            return attention.for_any_rows(decoder)

    @property
    def params(self) -> nnx.State:
        """Returns the trained parameters as they are now; the next step donates them."""
        return self.state.params

    # Rounds -----------------------------------------------------------------------------------------------------

    def enter_round(self) -> None:
        """Begins a round if the rows are others than those of the last step."""
        fingerprint = self.training.examples.fingerprint
        if fingerprint == self.round.data:
            return
        self.round = Round(fingerprint, self.step)
        state = self.state
        if self._renewal.optimizer:
            optimizer = make_optimizer(self.config.optimizer, lambda step: 0.0)
            opt_state = renewed(optimizer, split_targets(state.params)[0], state.opt_state)
            self.state = dataclasses.replace(state, opt_state=opt_state)
        if self._renewal.reference:
            self.reference = dataclasses.replace(
                self.reference, digest=self.partition.digest_now(self.params), renewed=True
            )
        self._renewal = Renewal()

    def prepare_reference(self) -> None:
        """Adds the columns that the reference brings to the rows, unless they have them."""
        cached = functools.partial(reference_columns, self)
        add = {"cached": cached, "columns": stored_columns}.get(self.reference.kind)
        splits = [split for split in (self.training, self.heldout) if split is not None]
        # A run that was extended since has steps whose rows have no log-probs of a cached reference yet.
        lacking = self.reference.kind == "cached" and not self.reference.renewed and self._scored < self.steps
        if add is None or (all(split.reference == self.reference.digest for split in splits) and not lacking):
            return
        self.training, self.heldout = add(self.training), self.heldout and add(self.heldout)
        self._scored = self.steps
        self.clock.lap("reference")

    def compile(self) -> None:
        """Compiles the step for the shape of the rows, or takes the program that was compiled for it."""
        for split in (self.training, self.heldout):
            attention.check_rows(self.attention, split and split.plan.shape)
        denominator = np.asarray(self.training.examples_per_step(), np.float32)
        self._constants = dataclasses.replace(self._constants, denominator=denominator)
        arguments = (self.state, next(self.training.batches(self.mesh, 0, 1)), self._constants)
        shape = self.training.plan.shape
        made_of = self.partition.policy, self.objective, self.horizons, self._sharding, self.mesh, self.reference
        step, identity = configured_step(self.config, *made_of)
        self.program = self._compiled.get(step, identity, arguments, shape, self.round)
        self.clock.lap("compile")

    # Figures and files ------------------------------------------------------------------------------------------

    def evaluate_before(self) -> None:
        """Evaluates the model as it was loaded."""
        if self.baseline is None:
            self.baseline = {"data": _fingerprint(self.heldout), "metrics": self.evaluate()}
            self.best.check(self.baseline["metrics"])
            if self.step == 0:
                self.ask_benchmark()
        self.clock.lap("evaluation")

    def evaluate(self) -> dict[str, float]:
        """Returns the metrics of the held-out rows, and logs them; empty without such rows."""
        if self.heldout is None:
            return {}
        with jax.set_mesh(self.mesh):
            self.load()
            self.prepare_reference()
            values = heldout_values(self)
        summary = self.objective.summariser()(values, self.heldout.static_columns())
        metrics = {"loss": float(values["loss"].sum() / values["denominator"].sum()), **summary}
        self.files.write_metrics(self.step, metrics, "eval")
        log(f"step {self.step}, held-out rows: {headline(metrics)}")
        return metrics

    def ask_benchmark(self) -> None:
        """Asks the benchmark, if there is one, and logs its metrics."""
        if self.benchmark is None:
            return
        metrics = self.benchmark(self.decoder())
        self.files.write_metrics(self.step, metrics, "benchmark")
        figures = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        log(f"step {self.step}: {self.config.benchmark.name}: {figures}")

    def _due(self, every: int) -> bool:
        return self.step < self.steps and every > 0 and self.step % every == 0

    def save(self) -> None:
        """Saves a checkpoint of this step, in the background; the report and the next command find it."""
        metadata = {
            "round": dataclasses.asdict(self.round),
            "baseline": self.baseline,
            "frozen": self.partition.digest,
            "reference": self.reference.digest,
            "renewed": self.reference.renewed,
        }
        self.files.checkpointer.best = self.best.step
        self.files.checkpointer.save(self.step, self.state, metadata)

    def close(self) -> None:
        """Waits for what is on its way to the disk and the hub, and frees the workdir; the model stays."""
        self._weights.drop()
        self.publisher.close(patient=0 < self.steps == self.step)
        self.files.close()

    def __enter__(self) -> Trainer:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the workdir."""
        self.close()


def _fingerprint(split: Split | None) -> str:
    return "" if split is None else split.examples.fingerprint
