"""Gives the records of an evaluation their confidences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from scipy import special

from smallr.core.errors import UserError
from smallr.core.journal import Journal
from smallr.evals.questions import Item
from smallr.evals.records import Record
from smallr.evals.store import question_key
from smallr.evals.trust.answers import answer_of
from smallr.evals.trust.parts import Parts
from smallr.language import calibration as calibrations
from smallr.language.base import LanguageModel
from smallr.language.calibration import Calibration
from smallr.language.confidence import FROM_LOGPROBS, MEASURES, Answer, measured, p_true, verdict_requests, verdicts_of
from smallr.language.trust import check_measure, given_verdict
from smallr.sampling.requests import Request, Result, Sample, TokenLogprob

CHOICE = "choice"


def settled(config: ConfigDict, *, answers: bool) -> tuple[str, Calibration | None]:
    """Returns the measure of an evaluation and its calibration, as the config or the model's folder has them.

    Args:
      config: of the evaluation.
      answers: whether the benchmark is answered in text.

    Raises:
      UserError: no such measure or calibration, or two that do not fit.
    """
    measure, given = config.confidence.measure, config.confidence.calibration
    if given == "none":
        calibration = None
    elif given:
        calibration = calibrations.read(Path(given).expanduser())
    else:
        calibration = calibrations.of_model(config.model)
        if calibration is not None and calibration.measure != (measure or calibration.measure):
            calibration = None  # the model's own is for another measure, and nobody has asked for it
        if calibration is not None and calibration.benchmark != config.benchmark:
            calibration = None
        if calibration is not None and calibration.measure == "majority" and not measure and config.sampling.n < 2:
            calibration = None  # there is no majority of one
    measure = measure or (calibration.measure if calibration else "")
    if measure or given not in ("", "none"):
        check_measure(measure, MEASURES if answers else (CHOICE,))
    if calibration is not None and calibration.measure != measure:
        raise UserError(
            f"config.confidence.calibration={given} is for the measure {calibration.measure!r}, not {measure!r}"
        )
    if measure == "majority" and config.sampling.n < 2:
        raise UserError("config.confidence.measure=majority needs several samples: --config.sampling.n=5, for instance")
    return measure, calibration


def rate_answers(
    records: Sequence[Record],
    items: Sequence[Item],
    measure: str,
    calibration: Calibration | None,
    model: LanguageModel,
    request: Callable[[Item], Request],
    split: Callable[[str], Parts] | None = None,
    journal: Journal | None = None,
) -> None:
    """Adds `confidence`, `measured` (before calibration) and all `measures` that cost nothing to records of texts.

    Log-probs are taken out of the records. A question without a result gets nothing.

    Args:
      records: judged, those of a question one after the other.
      items: the questions.
      measure: of `confidence`.
      calibration: for it.
      model: is asked for verdicts, all at once, where the measure is p_true.
      request: of a question.
      split: of an output, if its answer alone was graded.
      journal: keeps the verdicts; what is there already is not asked again.
    """
    by_id = {item.id: item for item in items}
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record["reason"] == "no result":
            continue
        if record["output"] is None:  # a prompt that is too long, so no answer
            record.update(confidence=0.0, measured=0.0, measures={})
            continue
        groups.setdefault(record["id"], []).append(record)
    samples = {name: [_sample(record) for record in group] for name, group in groups.items()}
    answers = {
        name: [answer_of(r["output"], r["extracted"], split and split(r["output"])) for r in group]
        for name, group in groups.items()
    }
    verdicts: dict[str, list[float]] = {}
    if measure == "p_true":
        asked = {name: verdict_requests(request(by_id[name]), samples[name], answers[name]) for name in groups}
        verdicts = _verdicts(asked, answers, model, journal)
    for name, group in groups.items():
        found = measured(samples[name], answers[name], verdicts.get(name))
        values = [each[measure] for each in found]
        calibrated = values if calibration is None else calibration.apply(values).tolist()
        for record, each, answer, value, rated in zip(group, found, answers[name], values, calibrated, strict=True):
            record.update(confidence=rated, measured=value, measures=each, answer_span=answer and list(answer.span))


def _sample(record: Record) -> Sample:
    pairs = record.pop("logprobs", None)
    logprobs = None if pairs is None else tuple(TokenLogprob(None, token, value) for token, value in pairs)
    return Sample(record["output"], record["finish_reason"], logprobs=logprobs)


def _verdicts(
    asked: Mapping[str, Mapping[str, Request]],
    answers: Mapping[str, Sequence[Answer | None]],
    model: LanguageModel,
    journal: Journal | None,
) -> dict[str, list[float]]:
    """Returns P(true) of every sample's answer, by the question."""
    requests = {
        (name, value): (question_key(f"verdict:{name}", _text(request)), request)
        for name, each in asked.items()
        for value, request in each.items()
    }
    kept = {} if journal is None else journal.entries()
    given = {pair: kept[key]["p_true"] for pair, (key, _) in requests.items() if key in kept}
    missing = [pair for pair in requests if pair not in given]

    def received(index: int, result: Result) -> None:
        if result.error is None and journal is not None:
            key, _ = requests[missing[index]]
            journal.add(key, {"samples": [], "p_true": p_true(given_verdict(result).samples[0])})

    results = model.complete_sync([requests[pair][1] for pair in missing], progress=received) if missing else []
    given |= {pair: p_true(given_verdict(each).samples[0]) for pair, each in zip(missing, results, strict=True)}
    return {
        name: verdicts_of(answers[name], {value: given[name, value] for value in each}) for name, each in asked.items()
    }


def _text(request: Request) -> str:
    return str(request.prompt or request.messages)


def needs_logprobs(measure: str) -> bool:
    """Says whether completions must bring log-probs along."""
    return measure in FROM_LOGPROBS


def rate_choices(
    records: Sequence[Record], items: Sequence[Item], metric: str, calibration: Calibration | None
) -> None:
    """Adds the chosen option's share of the options' probability to records of likelihoods.

    A temperature divides the options' `scores`, as is usual; isotonic regression maps the share itself.

    Args:
      records: one a question, in the order of the items.
      items: the questions.
      metric: "acc_norm" divides log-likelihoods by the options' characters first, as the choice does.
      calibration: for the measure "choice".
    """
    for record, item in zip(records, items, strict=True):
        if None in record["loglikelihoods"]:
            record.update(confidence=0.0, measured=0.0)
            continue
        lengths = [len(text) for text in item.task.texts] if metric == "acc_norm" else 1.0
        scores = np.asarray(record["loglikelihoods"]) / np.asarray(lengths)
        measured_share = rated = float(special.softmax(scores).max())
        if calibration is not None and calibration.method == "temperature":
            rated = float(special.softmax(scores / calibration.parameters["temperature"]).max())
        elif calibration is not None:
            rated = float(calibration.apply([measured_share])[0])
        record.update(confidence=rated, measured=measured_share, scores=scores.tolist())
