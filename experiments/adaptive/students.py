"""Trains a student in one order on rows of teacher data, and has it write."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments.adaptive.teacher_rows import Row, write_rows
from smallr.config import rationale
from smallr.core.stages import Stopped
from smallr.evals.graders.matching import close, to_decimal
from smallr.models.decoder import Decoder
from smallr.sampling.engine import Engine
from smallr.sampling.requests import Request, SamplingParams
from smallr.training.trainer import Trainer

Order = Literal["rationale_first", "answer_first"]
SEPARATOR = "-->"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Says how students are trained and asked; it is the same for all arms of an experiment.

    Attributes:
      model: what config.model takes.
      chat: questions are messages of a user.
      steps, rows, row_length, learning_rate, dtype: as in the config of a training run.
      max_tokens: of a completion.
      decode_slots: answers written at once.
    """

    model: str
    chat: bool
    steps: int
    rows: int = 8
    row_length: int = 512
    learning_rate: float = 1e-3
    dtype: str = "float32"
    max_tokens: int = 160
    decode_slots: int = 32


def config_of(recipe: Recipe, order: Order, seed: int, train: Path) -> ConfigDict:
    """Returns the training run."""
    config = rationale(order)
    config.seed, config.model = seed, recipe.model
    config.compute.dtype, config.compute.remat = recipe.dtype, "none" if recipe.dtype == "float32" else "dots"
    config.data.train, config.data.train_split, config.data.eval = str(train), "train", ""
    config.data.chat = recipe.chat
    config.batch.rows, config.batch.row_length = recipe.rows, recipe.row_length
    config.optimizer.learning_rate = recipe.learning_rate
    config.epochs, config.steps = 0, recipe.steps
    config.checkpoint.every, config.log_every = 200, 10
    config.lock()
    return config


Look = Callable[[Trainer], Any]


def train(config: ConfigDict, rows: Sequence[Row], folder: Path, looks: dict[float, Look] | None = None) -> Trainer:
    """Trains in `folder`, where it goes on if it was begun before.

    Args:
      config: from `config_of`; `rows` are written to the file that it names.
      rows: to train on.
      folder: of metrics and checkpoints.
      looks: share of the steps done -> what is called then with the trainer.

    Raises:
      Stopped: a signal ended the run; it goes on from its checkpoint.
    """
    write_rows(rows, Path(config.data.train))
    looks = {1.0: None, **(looks or {})}
    with Trainer(config, folder) as trainer:
        for share, look in sorted(looks.items()):
            trainer.fit(until=max(1, round(share * config.steps)))
            if trainer.stopped:
                raise Stopped
            if look is not None:
                look(trainer)
    return trainer


@dataclasses.dataclass(frozen=True)
class Written:
    """Holds completions of some questions, in their order.

    Attributes:
      correct: bool [questions].
      tokens: written for each, the separator's and the end token included.
      nll: of the answer's own tokens, nats a token; NaN without an answer.
      seconds: wall-clock time of all questions.
      cpu_seconds: processor time of all questions: other jobs on the machine hardly change it.
      texts: as written.
    """

    correct: np.ndarray
    tokens: np.ndarray
    nll: np.ndarray
    seconds: float
    cpu_seconds: float
    texts: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Writes JSON lines, one for each question."""
        lines = [
            {"correct": bool(c), "tokens": int(t), "nll": None if np.isnan(n) else round(float(n), 5), "text": text}
            for c, t, n, text in zip(self.correct, self.tokens, self.nll, self.texts, strict=True)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


class Asker:
    """Asks students for greedy answers; one engine for all that have the same structure.

    Args:
      decoder: of the structure.
      recipe: of the students.
      tokenizer: theirs.
      mesh: that they are on.
    """

    def __init__(self, decoder: Decoder, recipe: Recipe, tokenizer: Any, mesh: Mesh):
        self._recipe = recipe
        self._engine = Engine(decoder, tokenizer, mesh, decode_slots=recipe.decode_slots)
        self._warm: set[SamplingParams] = set()

    def __call__(self, decoder: Decoder, rows: Sequence[Row], order: Order, early_stop: bool = True) -> Written:
        """Writes answers. Answering first stops at the separator, unless `early_stop` is off; the other order at the end token."""
        self._engine.update(decoder)
        stop = (SEPARATOR,) if order == "answer_first" and early_stop else ()
        params = SamplingParams(max_tokens=self._recipe.max_tokens, stop=stop, logprobs=0)
        requests = [self._request(row.question, params) for row in rows]
        if params not in self._warm:  # compile before the clock runs
            self._engine.generate(requests[: self._recipe.decode_slots], progress=False)
            self._warm.add(params)
        start, cpu = time.perf_counter(), time.process_time()
        results = self._engine.generate(requests, progress=False)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        samples = [result.samples[0] if result.samples else None for result in results]
        texts = tuple(sample.text if sample else "" for sample in samples)
        return Written(
            np.array([right(answer_of(text, order), row.answer) for text, row in zip(texts, rows, strict=True)]),
            np.array([len(sample.token_ids) if sample else 0 for sample in samples]),
            np.array([answer_nll(sample.logprobs, order) if sample else np.nan for sample in samples]),
            seconds,
            cpu_seconds,
            texts,
        )

    def _request(self, question: str, params: SamplingParams) -> Request:
        if self._recipe.chat:
            return Request(messages=({"role": "user", "content": question},), params=params)
        return Request(prompt=f"{question} ###", params=params)


def answer_of(text: str, order: Order) -> str | None:
    """Returns the part of a completion that is its answer; None where it did not come to one."""
    first, mark, second = text.partition(SEPARATOR)
    if order == "answer_first":
        return first.strip()
    return second.strip() if mark else None


def right(answer: str | None, gold: str) -> bool:
    """Returns whether two answers are equal as numbers, or as texts without regard to case, spaces and a final full stop."""
    if answer is None:
        return False
    number = to_decimal(gold)
    if isinstance(number, Decimal):
        found = to_decimal(answer)
        return found is not None and close(found, number)
    return _plain(answer) == _plain(gold)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().rstrip(".").lower()


def answer_nll(logprobs: Sequence[Any], order: Order) -> float:
    """Computes the NLL a token of the answer's own tokens in a completion, nats; NaN without any."""
    text, before, after = "", [], []
    for token in logprobs:
        text += token.token
        if SEPARATOR not in text:
            before.append(-token.logprob)
        elif not text.rstrip().endswith(SEPARATOR):
            after.append(-token.logprob)
    chosen = before if order == "answer_first" else after
    return float(np.mean(chosen)) if chosen else float("nan")
