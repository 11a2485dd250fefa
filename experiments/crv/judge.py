"""Judges models: greedy answers graded by rule, and log-probs of held-out pairs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from smallr.config import finish, preference
from smallr.data.rows import GAPS
from smallr.data.sources import load_rows
from smallr.evals.graders.base import Job
from smallr.evals.graders.matching import numbers
from smallr.language.loading import load_trained
from smallr.sampling.engine import Engine
from smallr.sampling.prompts import end_ids
from smallr.sampling.requests import Request, SamplingParams
from smallr.training.evaluation import collect
from smallr.training.objective import Preference
from smallr.training.policy import ModelFunctions
from smallr.training.splits import Split, load_split
from smallr.training.step import Evaluation

ANSWERS, PAIRS = "answers.jsonl", "pairs.npz"


@dataclasses.dataclass(frozen=True)
class Examination:
    """Says what a model is asked.

    Attributes:
      questions: data set with a split `test` of `prompt` and `answer` (a number).
      pairs: data set with a split `test` of pairs with gaps; the chosen completion of a small gap is a fitted rationale.
      limit: questions; 0: none, so that nothing is written and accuracy is not known.
      max_tokens: of an answer.
      decode_slots: answers written at once.
      rows, row_length: of a batch of pairs.
      dtype: of the computation.
    """

    questions: str
    pairs: str
    limit: int
    max_tokens: int
    decode_slots: int
    rows: int
    row_length: int
    dtype: str


class Judge:
    """Examines models one after the other; models of one architecture share the compiled programs."""

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        self._engines: dict[Any, Engine] = {}
        self._evaluations: dict[Any, Any] = {}

    def __call__(self, model: str, exam: Examination, folder: Path) -> dict[str, float]:
        """Returns metrics of a model; every answer goes to `answers.jsonl`, the log-probs of all pairs to `pairs.npz`.

        Args:
          model: a run's workdir, or any model that training takes.
          exam: what it is asked.
          folder: of the two files.

        Returns:
          `correct` and `tokens` (mean length of an answer), `truncated` (share that reached `max_tokens`), `nll` (nats a token of
          fitted rationales), `per_token_accuracy` and `per_token_accuracy/GAP` (share of pairs whose
          chosen completion has the higher log-prob per token).
        """
        with jax.set_mesh(self._mesh):
            source, decoder = load_trained(model, self._mesh, dtype=exam.dtype)
            tokenizer = source.tokenizer()
            config = pair_config(exam)
            split = load_split(config, tokenizer, _PLAIN, "eval")
            graphdef, params = nnx.split(decoder)
            evaluation = self._evaluations.setdefault(
                decoder.config, Evaluation(ModelFunctions(graphdef), _PLAIN, self._mesh, chunk=0)
            )
            values = collect(lambda b: evaluation(params, b), split.one_pass(self._mesh), len(split.examples))
            metrics = pair_metrics(values, split)
            gap, row = split.static_columns()["gap"], split.examples.rows
            _save(folder / PAIRS, chosen=values["logp_chosen"], rejected=values["logp_rejected"], gap=gap, row=row)
            if exam.limit:
                engine = self._engine(decoder, tokenizer, end_ids(source), exam)
                metrics |= answer(engine, exam, folder / ANSWERS)
        return metrics

    def _engine(self, decoder: Any, tokenizer: Any, ends: tuple[int, ...], exam: Examination) -> Engine:
        key = (decoder.config, tokenizer.backend_tokenizer.to_str(), exam.decode_slots)
        if key in self._engines:
            self._engines[key].update(decoder)
        else:
            self._engines[key] = Engine(decoder, tokenizer, self._mesh, decode_slots=exam.decode_slots, end_ids=ends)
        return self._engines[key]


_PLAIN = Preference("sigmoid", 1.0, "none")  # the log-probs as they are


def pair_config(exam: Examination) -> ConfigDict:
    """Returns the config by which the held-out pairs are read."""
    config = preference()
    config.objective.reference = "none"
    config.data.eval, config.data.eval_split = exam.pairs, "test"
    config.batch.rows, config.batch.row_length = exam.rows, exam.row_length
    return finish(config, None)


def pair_metrics(values: Mapping[str, Float[np.ndarray, "pairs"]], split: Split) -> dict[str, float]:
    """Computes `nll`, `per_token_accuracy` and `per_token_accuracy/GAP`."""
    known = split.static_columns()
    chosen = values["logp_chosen"] / known["scored_chosen"]
    is_right = chosen > values["logp_rejected"] / known["scored_rejected"]
    small = known["gap"] == GAPS.index("small")
    found = {"per_token_accuracy": is_right.mean()}
    if small.any():
        found["nll"] = -values["logp_chosen"][small].sum() / known["scored_chosen"][small].sum()
    for index, gap in enumerate(GAPS):
        if (members := known["gap"] == index).any():
            found[f"per_token_accuracy/{gap}"] = is_right[members].mean()
    return {name: float(value) for name, value in found.items()}


def answer(engine: Engine, exam: Examination, path: Path) -> dict[str, float]:
    """Writes greedy answers to the questions, and grades them by rule."""
    rows = load_rows(exam.questions, f"test[:{exam.limit}]")
    params = SamplingParams(max_tokens=exam.max_tokens)
    asked = [Request(messages=({"role": "user", "content": row["prompt"]},), params=params) for row in rows]
    results = engine.generate(asked, progress=False)
    texts = [result.samples[0] if result.error is None else None for result in results]
    verdicts = numbers().grade(
        [Job(text.text if text else "", row["answer"]) for text, row in zip(texts, rows, strict=True)]
    )
    records = [
        {
            "prompt": row["prompt"],
            "answer": row["answer"],
            "output": text.text if text else None,
            "tokens": len(text.token_ids) if text else 0,
            "truncated": bool(text and text.finish_reason == "length"),
            "extracted": verdict.extracted,
            "correct": verdict.correct,
        }
        for row, text, verdict in zip(rows, texts, verdicts, strict=True)
    ]
    if jax.process_index() == 0:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {
        "correct": float(np.mean([record["correct"] for record in records])),
        "tokens": float(np.mean([record["tokens"] for record in records])),
        "truncated": float(np.mean([record["truncated"] for record in records])),
    }


def _save(path: Path, **arrays: np.ndarray) -> None:
    if jax.process_index() == 0:
        np.savez(path, **arrays)


def against(policy: Path, reference: Path) -> dict[str, float]:
    """Computes preference metrics of one examined model relative to another.

    Returns:
      `accuracy`: share of held-out pairs with h > 0 (h = 0 counts half); `log_ratio_margin`: mean h in nats. Both are given
      for each gap too.

    Raises:
      ValueError: the two were examined on other pairs.
    """
    with np.load(policy) as ours, np.load(reference) as theirs:
        if not np.array_equal(ours["row"], theirs["row"]):
            raise ValueError(f"{policy} and {reference} are of other pairs")
        h = (ours["chosen"] - theirs["chosen"]) - (ours["rejected"] - theirs["rejected"])
        right, gaps = np.where(h == 0, 0.5, h > 0), ours["gap"]
    found = {"accuracy": right.mean(), "log_ratio_margin": h.mean()}
    for index, gap in enumerate(GAPS):
        if (members := gaps == index).any():
            found |= {f"accuracy/{gap}": right[members].mean(), f"log_ratio_margin/{gap}": h[members].mean()}
    return {name: float(value) for name, value in found.items()}


def read_answers(path: Path) -> list[dict[str, Any]]:
    """Returns lines of an `answers.jsonl`, in the order of the questions."""
    return [json.loads(line) for line in path.read_text().splitlines()]
