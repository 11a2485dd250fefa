"""Tests whether smallr and transformers answer alike: `python -m benchmarks.agreement --out=FOLDER --gsm8k=FILE --csqa=FILE`.

The same prompts, SmolLM2-135M-Instruct in float32. GSM8K: greedy completions, the extracted answers and the verdicts, and
for every completion that differs the gap between the two likeliest logits where it begins to. CommonsenseQA: the chosen
options and the log-likelihoods. What has been answered stays in FOLDER; the same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import numpy as np
import torch

from benchmarks.generate import torch_model
from smallr.evals.benchmarks import find
from smallr.evals.benchmarks.base import GraderOptions
from smallr.evals.models import open_scorer
from smallr.evals.questions import load_items
from smallr.evals.records import Record
from smallr.evals.running import Asked, run_generation, run_likelihood
from smallr.evals.statistics import pass_at_1
from smallr.evals.store import Store
from smallr.language.base import Progress
from smallr.language.opening import open_language_model
from smallr.models.loading import open_model
from smallr.sampling.prompts import end_of_turn, prompt_ids
from smallr.sampling.requests import Request, Result, Sample, SamplingParams, Usage

MODEL = "smollm2-135m-instruct"
BATCH = 16  # completions of transformers at once


class Reference:
    """Makes transformers a language model and a scorer of given texts."""

    name = "transformers"

    def __init__(self) -> None:
        source = open_model(MODEL)
        self.tokenizer, self._vocabulary = source.tokenizer(), source.config.vocab_size
        self._model = torch_model(source)
        self._seen: dict[str, torch.Tensor] = {}

    def ids(self, request: Request) -> list[int]:
        """Returns the tokens of a prompt."""
        return prompt_ids(request, self.tokenizer, self._vocabulary)

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Returns the logits of the token behind these."""
        with torch.inference_mode():
            return self._model(torch.tensor([list(ids)])).logits[0, -1]

    def complete_sync(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[Result]:
        """Completes greedily, a padded batch after the other."""
        results = []
        for start in range(0, len(requests), BATCH):
            for result in self._batch(requests[start : start + BATCH]):
                results.append(result)
                if progress is not None:
                    progress(len(results) - 1, result)
        return results

    def _batch(self, requests: Sequence[Request]) -> list[Result]:
        prompts = [self.ids(request) for request in requests]
        width = max(map(len, prompts))
        ends = [self.tokenizer.eos_token_id, *end_of_turn(self.tokenizer)]
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        limit = requests[0].params.max_tokens
        options = {"do_sample": False, "eos_token_id": ends, "pad_token_id": ends[0], "max_new_tokens": limit}
        with torch.inference_mode():
            written = self._model.generate(ids, attention_mask=mask, **options)[:, width:].tolist()
        return [self._result(prompt, row, ends) for prompt, row in zip(prompts, written, strict=True)]

    def _result(self, prompt: list[int], row: list[int], ends: list[int]) -> Result:
        count = next((place + 1 for place, token in enumerate(row) if token in ends), None)
        kept = row if count is None else row[:count]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        sample = Sample(text, "length" if count is None else "stop", tuple(kept))
        return Result((sample,), Usage(len(prompt), len(kept)))

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Scores continuations of one token; a context is read once."""
        return [self._score(context, continuation) for context, continuation in pairs]

    def _score(self, context: str, continuation: str) -> tuple[float, bool]:
        before = self.tokenizer(context)["input_ids"]
        (token,) = self.tokenizer(context + continuation)["input_ids"][len(before) :]
        if context not in self._seen:
            self._seen = {context: self.logits(before).double().log_softmax(-1)}
        logps = self._seen[context]
        return float(logps[token]), int(logps.argmax()) == token


def answers(folder: Path, data: str, limit: int, max_tokens: int, reference: Reference) -> None:
    """Compares GSM8K by both."""
    benchmark = find("gsm8k")
    items, _ = load_items(benchmark, data, limit=limit)
    asked = Asked(SamplingParams(max_tokens=max_tokens))
    with contextlib.closing(benchmark.grader(GraderOptions())) as grader:
        theirs = run_generation(items, reference, asked, grader, _store(folder, "gsm8k-transformers", max_tokens))
        with contextlib.closing(open_language_model(MODEL, cache=False, dtype="float32")) as model:
            ours = run_generation(items, model, asked, grader, _store(folder, "gsm8k-smallr", max_tokens))
    for name, records in (("smallr", ours), ("transformers", theirs)):
        print(f"gsm8k, {name}: {_figure(records)}")
    for field in ("output", "extracted", "correct"):
        same = sum(a[field] == b[field] for a, b in zip(ours, theirs, strict=True))
        print(f"gsm8k, the same {field}: {same} of {len(items)}")
    for item, a, b in zip(items, ours, theirs, strict=True):
        if a["output"] != b["output"]:
            _difference(item.id, reference, asked.request(item), a, b)


def _difference(name: str, reference: Reference, request: Request, ours: Record, theirs: Record) -> None:
    """Returns where two completions part, and how near the two likeliest tokens are there."""
    a, b = (reference.tokenizer(record["output"])["input_ids"] for record in (ours, theirs))
    place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    top = torch.topk(reference.logits([*reference.ids(request), *b[:place]]), 2).values
    answers = f"{ours['extracted']} and {theirs['extracted']}"
    print(f"  question {name} parts at token {place}, logits {float(top[0] - top[1]):.1e} apart; answers {answers}")


def options(folder: Path, data: str, limit: int, reference: Reference) -> None:
    """Compares CommonsenseQA by both."""
    items, _ = load_items(find("commonsense_qa"), data, limit=limit)
    theirs = run_likelihood(items, reference, _store(folder, "csqa-transformers"))
    ours = run_likelihood(items, open_scorer(MODEL, dtype="float32"), _store(folder, "csqa-smallr"))
    for name, records in (("smallr", ours), ("transformers", theirs)):
        print(f"commonsense_qa, {name}: {_figure(records)}")
    same = sum(a["choice"] == b["choice"] for a, b in zip(ours, theirs, strict=True))
    a, b = (np.array([record["loglikelihoods"] for record in records]) for records in (ours, theirs))
    print(f"commonsense_qa, the same option: {same} of {len(items)}; log-likelihoods within {np.abs(a - b).max():.1e}")


def _store(folder: Path, name: str, max_tokens: int | None = None) -> Store:
    return Store(folder / name, {"model": MODEL, "dtype": "float32", "max_tokens": max_tokens})


def _figure(records: Sequence[dict[str, Any]]) -> str:
    estimate = pass_at_1([[float(record["correct"])] for record in records])
    low, high = estimate.interval()
    return f"{estimate.value:.4f} right, 95 % interval {low:.3f} … {high:.3f}"


def main() -> None:
    """Runs what there are files for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the answers")
    parser.add_argument("--gsm8k", help="rows of GSM8K's test set")
    parser.add_argument("--csqa", help="rows of CommonsenseQA's dev set")
    parser.add_argument("--questions", type=int, default=200, help="of GSM8K")
    parser.add_argument("--max_tokens", type=int, default=256)
    args = parser.parse_args()
    reference = Reference()
    if args.csqa:
        options(args.out, args.csqa, 300, reference)
    if args.gsm8k:
        answers(args.out, args.gsm8k, args.questions, args.max_tokens, reference)


if __name__ == "__main__":
    main()
