"""Adds to the records of an evaluation whether each rationale leads to the answer that was given with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from smallr.core.journal import Journal
from smallr.evals.extraction import boxed
from smallr.evals.graders.base import Grader
from smallr.evals.graders.symbolic import Symbolic
from smallr.evals.questions import Item
from smallr.evals.records import Record
from smallr.evals.running import Asked
from smallr.evals.store import question_key
from smallr.evals.trust.agreement import compare, reading_prompt
from smallr.evals.trust.parts import Parts, split
from smallr.language.base import LanguageModel
from smallr.sampling.requests import Request, SamplingParams


def add_agreement(
    records: Sequence[Record],
    items: Mapping[str, Item],
    config: ConfigDict,
    grader: Grader,
    model: LanguageModel,
    asked: Asked,
    journal: Journal,
) -> None:
    """Writes `agreement` and `from_rationale` into every record that has an output.

    Args:
      records: judged; `extracted` is the answer that was given.
      items: by the id of their question.
      config: the fields `agreement` of the evaluation.
      grader: of the benchmark.
      model: that reads the rationales, if `config.reader` is `model`.
      asked: how questions are put to it.
      journal: keeps what it replies.
    """
    given = [record for record in records if record["output"] is not None]
    parts = [split(record["output"], config.order, config.separator) for record in given]
    texts = [part.rationale for part in parts]
    if config.reader == "model":
        texts = _replies(given, texts, items, config, model, asked, journal)
    answers = [_answer(record, part, grader) for record, part in zip(given, parts, strict=True)]
    rows = [items[record["id"]].row for record in given]
    for record, agreement in zip(given, compare(texts, answers, grader, rows), strict=True):
        record.update(agreement=agreement.state, from_rationale=agreement.from_rationale)


def _answer(record: Record, part: Parts, grader: Grader) -> str | None:
    """Returns the answer given as the grader wants a gold one; math-verify parses LaTeX, so there the box as it stands."""
    if record["extracted"] is not None and isinstance(grader, Symbolic):
        return boxed(part.answer) or record["extracted"]
    return record["extracted"]


def _replies(
    records: Sequence[Record],
    rationales: Sequence[str],
    items: Mapping[str, Item],
    config: ConfigDict,
    model: LanguageModel,
    asked: Asked,
    journal: Journal,
) -> list[str]:
    """Returns what the model replies when it is shown each rationale; empty where it was shown none or gave no reply."""
    params = SamplingParams(max_tokens=config.max_tokens)
    requests: dict[str, Request] = {}
    keys: list[str] = []
    for record, rationale in zip(records, rationales, strict=True):
        text = reading_prompt(config.prompt, items[record["id"]].task.prompt, rationale)
        key = question_key(f"reading:{record['id']}", f"{config.max_tokens} {text}")
        keys.append(key if rationale else "")
        if rationale and key not in journal:
            message = ({"role": "user", "content": text},)
            requests[key] = (
                Request(messages=message, params=params) if asked.chat else Request(prompt=text, params=params)
            )
    names = list(requests)

    def received(index: int, result) -> None:
        if result.error is None:
            journal.add(names[index], {"samples": [dataclasses.asdict(result.samples[0]) | {"logprobs": None}]})

    if requests:
        model.complete_sync(list(requests.values()), progress=received)
    return [journal[key]["samples"][0]["text"] if key in journal else "" for key in keys]
