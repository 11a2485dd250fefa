"""Runs the core of an evaluation: questions to an open model, answers to verdicts. It needs no files and no command line."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from smallr.core.errors import UserError
from smallr.core.journal import Journal
from smallr.evals.benchmarks.base import Question
from smallr.evals.graders.base import Grader, Job
from smallr.evals.questions import Item
from smallr.evals.records import Record
from smallr.evals.store import question_key
from smallr.evals.trust.parts import Parts
from smallr.language.base import LanguageModel
from smallr.language.trust import TOO_LONG, no_logprobs
from smallr.sampling.requests import Request, Result, SamplingParams

# How models and servers say that a prompt does not fit.
_NO_LOGPROBS = re.compile(r"log-?_?probs?", re.IGNORECASE)
# Ends an answer where examples are paragraphs: a base model goes on with a question of its own.
PARAGRAPH_STOP = "\nQuestion:"
_GROUP = 64  # questions by likelihood between two writes


class LikelihoodModel(Protocol):
    """Scores given texts."""

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Returns for each (context, continuation) the sum of log-probs of the continuation (nats; NaN if the pair does not fit
        into the context), and whether it is what greedy decoding writes.
        """
        ...


@dataclass(frozen=True)
class Asked:
    """Says how questions are put.

    Attributes:
      params: of sampling; `n` samples a question. Its seed is made of `seed` and the question.
      chat: as a user's message; else as plain text.
      shots: examples before each question: turns of the conversation, or paragraphs of the text.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    chat: bool = True
    seed: int = 0
    shots: tuple[Question, ...] = ()

    def text(self, item: Item) -> str:
        """Returns all that is asked, as plain text."""
        if not self.shots:
            return item.task.prompt
        examples = (f"Question: {shot.prompt}\nAnswer: {shot.solution}\n\n" for shot in self.shots)
        return f"{''.join(examples)}Question: {item.task.prompt}\nAnswer:"

    def request(self, item: Item) -> Request:
        """Returns the request for a question. It depends on nothing else, so neither do its samples."""
        digest = hashlib.sha256(f"{self.seed}:{item.id}".encode()).digest()
        params = replace(self.params, seed=int.from_bytes(digest[:4], "big") >> 1)
        if not self.chat:
            if self.shots:
                params = replace(params, stop=(*params.stop, PARAGRAPH_STOP))
            return Request(prompt=self.text(item), params=params)
        turns = [(("user", shot.prompt), ("assistant", shot.solution)) for shot in self.shots]
        said = [*(each for turn in turns for each in turn), ("user", item.task.prompt)]
        return Request(messages=tuple({"role": role, "content": content} for role, content in said), params=params)


def run_generation(
    items: Sequence[Item],
    model: LanguageModel,
    asked: Asked,
    grader: Grader,
    journal: Journal | None = None,
    split: Callable[[str], Parts] | None = None,
) -> list[Record]:
    """Asks a model and judges what it says.

    Args:
      items: of a benchmark answered in text.
      model: any; all questions that are not in the journal are given to it at once.
      asked: how.
      grader: the benchmark's.
      journal: where answers are kept as they come; what is there already is not asked again.
      split: of an output, if its answer alone is graded.

    Returns:
      A record a sample, in order. A question that got no answer has one record with `error`. Log-probs that were asked
      for are in `logprobs`, as pairs of a token and its log-prob.

    Raises:
      UserError: log-probs were asked for and the model gives none.
    """
    keys = {item.id: question_key(item.id, asked.text(item)) for item in items}
    answers = {} if journal is None else journal.entries()
    open_items = [item for item in items if keys[item.id] not in answers]
    failed: dict[str, str] = {}
    clock = time.perf_counter()

    with tqdm(total=len(items), initial=len(items) - len(open_items), desc="answers", disable=None) as bar:

        def received(index: int, result: Result) -> None:
            nonlocal clock
            key = keys[open_items[index].id]
            bar.update()
            # The time since the answer before: over all answers these add up to the time that was waited for the model.
            before, clock = clock, time.perf_counter()
            if asked.params.logprobs is not None and _lacks_logprobs(result):
                raise UserError(no_logprobs("answer"))
            if result.error is not None:
                failed[key] = result.error
                return
            answers[key] = _answer(result) | {"seconds": None if result.cached else clock - before}
            if journal is not None:
                journal.add(key, answers[key])

        if open_items:
            model.complete_sync([asked.request(item) for item in open_items], progress=received)
    records = [
        record
        for item in items
        for record in _records(item, answers.get(keys[item.id]), failed.get(keys[item.id], "no result"))
    ]
    return _judged(records, {item.id: item for item in items}, grader, split)


def _lacks_logprobs(result: Result) -> bool:
    if result.error is not None:
        return bool(_NO_LOGPROBS.search(result.error))
    return any(sample.logprobs is None for sample in result.samples)


def _answer(result: Result) -> Record:
    """Returns what is stored of a result."""
    samples = [
        {"text": sample.text, "finish_reason": sample.finish_reason, "tokens": len(sample.token_ids) or None}
        | ({} if sample.logprobs is None else {"logprobs": [[each.token, each.logprob] for each in sample.logprobs]})
        for sample in result.samples
    ]
    if len(samples) == 1 and samples[0]["tokens"] is None:  # a server says how many there were in all
        samples[0]["tokens"] = result.usage.completion_tokens or None
    return {
        "samples": samples,
        "prompt_tokens": result.usage.prompt_tokens,
        "completion_tokens": result.usage.completion_tokens,
    }


def _records(item: Item, answer: Mapping[str, Any] | None, error: str) -> list[Record]:
    base = {"id": item.id, "prompt": item.task.prompt}
    if answer is None:
        reason = "prompt too long" if TOO_LONG.search(error) else "no result"
        return [{**base, "sample": 0, "output": None, "correct": False, "reason": reason, "error": error}]
    share = answer["completion_tokens"] / max(len(answer["samples"]), 1)
    return [
        {
            **base,
            "sample": index,
            "output": sample["text"],
            "finish_reason": sample["finish_reason"],
            "tokens": sample["tokens"] or share or None,
            "prompt_tokens": answer["prompt_tokens"],
            **({"logprobs": sample["logprobs"]} if "logprobs" in sample else {}),
        }
        for index, sample in enumerate(answer["samples"])
    ]


def _judged(
    records: list[Record], items: Mapping[str, Item], grader: Grader, split: Callable[[str], Parts] | None
) -> list[Record]:
    """Adds verdicts to the records that have an output."""
    given = [record for record in records if record["output"] is not None]
    outputs = [split(record["output"]).answer if split else record["output"] for record in given]
    jobs = [
        Job(output, items[record["id"]].task.gold, items[record["id"]].row)
        for record, output in zip(given, outputs, strict=True)
    ]
    for record, job, verdict in zip(given, jobs, grader.grade(jobs), strict=True):
        gold = job.gold if isinstance(job.gold, str) else None  # tests are in the data
        record.update(correct=verdict.correct, extracted=verdict.extracted, reason=verdict.reason, gold=gold)
    return records


def run_likelihood(items: Sequence[Item], model: LikelihoodModel, journal: Journal | None = None) -> list[Record]:
    """Scores the options of each question; arguments as in `run_generation`.

    Returns:
      A record a question: `loglikelihoods`, `choice` and `correct` by their sum (lm-evaluation-harness's acc), `choice_norm`
      and `correct_norm` by the sum over the option's characters (its acc_norm).
    """
    keys = {item.id: question_key(item.id, repr((item.task.contexts, item.task.continuations))) for item in items}
    answers = {} if journal is None else journal.entries()
    open_items = [item for item in items if keys[item.id] not in answers]
    with tqdm(total=len(items), initial=len(items) - len(open_items), desc="scores", disable=None) as bar:
        for start in range(0, len(open_items), _GROUP):
            group = open_items[start : start + _GROUP]
            pairs = [pair for item in group for pair in zip(item.task.contexts, item.task.continuations, strict=True)]
            values = iter(model.loglikelihood(pairs))
            for item in group:
                scored = [next(values) for _ in item.task.continuations]
                answer = {"loglikelihoods": [None if np.isnan(value) else value for value, _ in scored]}
                answers[keys[item.id]] = answer
                if journal is not None:
                    journal.add(keys[item.id], answer)
            bar.update(len(group))
    return [_chosen(item, answers[keys[item.id]]["loglikelihoods"]) for item in items]


def _chosen(item: Item, values: Sequence[float | None]) -> Record:
    task = item.task
    record = {
        "id": item.id,
        "sample": 0,
        "prompt": task.contexts[0],
        "loglikelihoods": list(values),
        "gold": task.gold,
    }
    if None in values:
        return {**record, "output": None, "correct": False, "correct_norm": False, "reason": "prompt too long"}
    lengths = np.array([len(text) for text in task.texts], float)
    choice = int(np.argmax(values))
    normalised = int(np.argmax(np.asarray(values) / lengths))
    return {
        **record,
        "output": task.texts[choice],
        "choice": choice,
        "choice_norm": normalised,
        "correct": choice == task.gold,
        "correct_norm": normalised == task.gold,
        "reason": "",
    }
