"""Evaluates a benchmark while a model trains: on the training mesh, with the current weights, without an export."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.data.templates import DATE
from smallr.evals.benchmarks import find
from smallr.evals.benchmarks.base import Generation, GraderOptions
from smallr.evals.likelihood import LikelihoodScorer
from smallr.evals.questions import load_items
from smallr.evals.running import Asked, run_generation, run_likelihood
from smallr.evals.summary import summarise
from smallr.language.base import Progress
from smallr.models.decoder import Decoder
from smallr.sampling.engine import Engine
from smallr.sampling.prompts import end_ids
from smallr.sampling.requests import Request, Result, SamplingParams
from smallr.training.opening import open_trained


class TrainingBenchmark:
    """Asks `config.benchmark` of a training run: greedy answers, or likelihoods, of the same questions each time.

    The first call builds the engine (or the scorer), later ones only give it the new weights, so that nothing is
    compiled again. Between calls it keeps one copy of the weights in the compute dtype.

    Args:
      config: of the training run.
      mesh: of the training run.

    Raises:
      UserError: no such benchmark, rows that cannot be read, a benchmark that runs code, or several hosts.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh):
        wanted = config.benchmark
        if jax.process_count() > 1:
            raise UserError(
                "config.benchmark: asked on one host only; empty its name and run smallr evaluate on checkpoints"
            )
        self._benchmark = find(wanted.name)
        self._items, self._report = load_items(self._benchmark, wanted.data, wanted.split, wanted.limit)
        if isinstance(self._benchmark, Generation) and self._benchmark.runs_code:
            raise UserError(f"config.benchmark.name={wanted.name} runs code: use smallr evaluate on checkpoints")
        self._mesh, self._decode_slots = mesh, wanted.decode_slots
        self._max_tokens = wanted.max_tokens or getattr(self._benchmark, "max_tokens", 1)
        self._date = config.data.get("date", DATE)
        self._source = open_trained(config.model, config.tokenizer)
        self._tokenizer = self._source.tokenizer()
        self._engine: Engine | None = None
        self._scorer: LikelihoodScorer | None = None

    def __call__(self, decoder: Decoder) -> dict[str, float]:
        """Returns the benchmark's metrics and their standard errors; for answers, tokens and the share that was cut off too."""
        answers = isinstance(self._benchmark, Generation)
        records = self._answered(decoder) if answers else run_likelihood(self._items, self._scored_by(decoder))
        summary = summarise(self._benchmark, records, self._report)
        figures = {}
        for name, estimate in summary["metrics"].items():
            figures[name], figures[f"{name}/stderr"] = estimate["value"], estimate["error"]
        if answers:
            figures |= {name: summary[name] for name in ("tokens_per_answer", "truncated") if name in summary}
        return {name: float(value) for name, value in figures.items() if value is not None}

    def _answered(self, decoder: Decoder) -> list[dict[str, Any]]:
        if self._engine is None:
            self._engine = Engine(
                decoder,
                self._tokenizer,
                self._mesh,
                decode_slots=self._decode_slots,
                end_ids=end_ids(self._source),
                date=self._date,
            )
        else:
            self._engine.update(decoder)
        with contextlib.closing(self._benchmark.grader(GraderOptions())) as grader:
            asked = Asked(SamplingParams(max_tokens=self._max_tokens))
            return run_generation(self._items, _Direct(self._engine), asked, grader)

    def _scored_by(self, decoder: Decoder) -> LikelihoodScorer:
        if self._scorer is None:
            self._scorer = LikelihoodScorer(decoder, self._tokenizer, self._mesh)
        else:
            self._scorer.update(decoder)
        return self._scorer


class _Direct:
    """Makes the engine a language model that answers at once, in the thread that asks."""

    name = "the model in training"

    def __init__(self, engine: Engine):
        self._engine = engine

    def complete_sync(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[Result]:
        results = self._engine.generate(requests, progress=False)
        for index, result in enumerate(results):
            if progress is not None:
                progress(index, result)
        return results


def open_benchmark(config: ConfigDict, mesh: Mesh) -> TrainingBenchmark | None:
    """Returns the benchmark that a run's config names, or None."""
    wanted: Mapping[str, Any] = dict(config.benchmark.items())
    return TrainingBenchmark(config, mesh) if wanted["name"] else None
