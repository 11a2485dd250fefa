"""Counts what the server does, in the text format of Prometheus; names are vLLM's where the meaning is the same."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from smallr.language.drift import WINDOW, Distribution, Drift
from smallr.language.engine_thread import EngineThread
from smallr.sampling.completions import Handle

SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
)  # fmt: skip
TOKENS = tuple(2.0**power for power in range(16))
CANCELLED = "cancelled"


class Metrics:
    """Holds the metrics of one served model.

    Args:
      name: of the model.
    """

    def __init__(self, name: str):
        self.registry = CollectorRegistry()
        self._name = name
        self._prompt = self._counter("vllm:prompt_tokens", "Tokens of prompts.")
        self._generated = self._counter("vllm:generation_tokens", "Tokens of completions.")
        self._finished = Counter(
            "vllm:request_success", "Finished completions.", ["model_name", "finished_reason"], registry=self.registry
        )
        self._failed = self._counter("smallr:requests_failed", "Requests that ended in an error.")
        self._left = self._counter("smallr:requests_cancelled", "Requests whose client left.")
        self._first = self._histogram("vllm:time_to_first_token_seconds", "From a request to its first token.", SECONDS)
        self._whole = self._histogram("vllm:e2e_request_latency_seconds", "From a request to its end.", SECONDS)
        self._queue = self._histogram("vllm:request_queue_time_seconds", "From a request to its slot.", SECONDS)
        self._each = self._histogram(
            "vllm:request_time_per_output_token_seconds", "Mean time of a token behind the first.", SECONDS
        )
        self._prompts = self._histogram("vllm:request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self._lengths = self._histogram("vllm:request_generation_tokens", "Tokens of a request's completions.", TOKENS)

    def watch(self, engine: EngineThread) -> None:
        """Reads the state of an engine whenever the metrics are asked for."""
        running = self._gauge("vllm:num_requests_running", "Requests that are decoded.")
        running.set_function(lambda: engine.running)
        waiting = self._gauge("vllm:num_requests_waiting", "Requests that wait for a slot.")
        waiting.set_function(lambda: max(0, engine.load - engine.running))
        restarts = self._gauge("smallr:engine_restarts", "Restarts of the engine after an error on the devices.")
        restarts.set_function(lambda: engine.restarts)

    def ended(self, handle: Handle) -> None:
        """Counts a request that has ended."""
        result, now = handle.result, time.monotonic()
        if result is None or result.error is not None:
            (self._left if result is None or result.error == CANCELLED else self._failed).inc()
            return
        usage = result.usage
        self._prompt.inc(usage.prompt_tokens)
        self._generated.inc(usage.completion_tokens)
        self._prompts.observe(usage.prompt_tokens)
        self._lengths.observe(usage.completion_tokens)
        for sample in result.samples:
            self._finished.labels(self._name, sample.finish_reason).inc()
        self._whole.observe(now - handle.submitted)
        if handle.started is not None:
            self._queue.observe(handle.started - handle.submitted)
        if handle.first_token is not None:
            self._first.observe(handle.first_token - handle.submitted)
            behind = usage.completion_tokens / len(result.samples) - 1
            if behind > 0:
                self._each.observe((now - handle.first_token) / behind)

    def follow(self, confidence: Distribution | None, length: Distribution | None) -> None:
        """Begins to count rated answers, and how far they have drifted from what an evaluation saw.

        Args:
          confidence: of the evaluation's answers; None for no figure of drift.
          length: of the tokens of these answers.
        """
        self._answers = self._counter("smallr:answers", "Answers with a confidence.")
        self._escalations = self._counter("smallr:escalations", "Answers whose confidence was below the threshold.")
        self._disagreements = self._counter("smallr:disagreements", "Answers that their rationale does not lead to.")
        self._drifts = (Drift(confidence), Drift(length))
        for name, drift in zip(("confidence", "length"), self._drifts, strict=True):
            what = f"Population stability index of the {name} of the last {WINDOW} answers against the evaluation's."
            self._gauge(f"smallr:{name}_psi", what).set_function(drift.index)

    def rated(self, confidence: float, tokens: float, escalated: bool, agreement: bool | None) -> None:
        """Counts one rated answer; `follow` must have been called."""
        self._answers.inc()
        self._escalations.inc(escalated)
        self._disagreements.inc(agreement is False)
        for drift, value in zip(self._drifts, (confidence, tokens), strict=True):
            drift.add(value)

    def text(self) -> bytes:
        """Returns all metrics as Prometheus reads them."""
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(name, about, ["model_name"], registry=self.registry).labels(self._name)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(name, about, ["model_name"], registry=self.registry).labels(self._name)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, about, ["model_name"], buckets=buckets, registry=self.registry).labels(self._name)
