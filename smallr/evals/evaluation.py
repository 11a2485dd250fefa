"""Runs one evaluation from its config to its folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from smallr.core.errors import UserError
from smallr.core.journal import Journal
from smallr.evals import models
from smallr.evals.benchmarks import find
from smallr.evals.benchmarks.base import Generation, GraderOptions
from smallr.evals.comparison import FIELDS
from smallr.evals.questions import Item, load_items
from smallr.evals.records import Record
from smallr.evals.running import Asked, LikelihoodModel, run_generation, run_likelihood
from smallr.evals.shots import before_options, load_shots
from smallr.evals.store import check_logprobs, open_folder, write_results
from smallr.evals.summary import summarise
from smallr.evals.trust import asked_for, report
from smallr.evals.trust.rating import needs_logprobs, rate_answers, rate_choices, settled
from smallr.language.base import LanguageModel
from smallr.language.calibration import Calibration, warn_if_of_another
from smallr.sampling.requests import SamplingParams


def evaluate(
    config: ConfigDict,
    folder: Path,
    *,
    unsafe_code_execution: bool = False,
    model: LanguageModel | LikelihoodModel | None = None,
) -> dict[str, Any]:
    """Runs an evaluation, or goes on with the one in `folder`.

    Args:
      config: of `smallr.evals.config.base`.
      folder: of answers and results; see `smallr.evals.store`.
      unsafe_code_execution: run code with limits alone where it cannot be isolated.
      model: an open one, which is not closed; by default `config.model` is opened.

    Returns:
      The results, as they stand in `results.json`.

    Raises:
      UserError: anything that the user must change; as much of it as possible before the model is opened.
    """
    benchmark = find(config.benchmark)
    items, drops = load_items(benchmark, config.data, config.split, config.limit)
    if drops.dropped:
        print(drops, flush=True)
    answers = isinstance(benchmark, Generation)
    baseline = asked_for.check(benchmark, items, config)
    shots = load_shots(benchmark, items, **config.shots)
    measure, calibration = settled(config, answers=answers)
    if calibration is not None:
        warn_if_of_another(calibration, config.model)
    asked = Asked(_params(config, measure), config.chat, config.seed, shots) if answers else None
    known = identity(config)
    check_logprobs(folder, known)
    with open_folder(folder, known) as stage:
        journal = stage.journal(("samples",) if answers else ("loglikelihoods",))
        figures: dict[str, Any] = {}
        if answers:
            rated = (measure, calibration)
            records, figures = _answered(benchmark, items, asked, config, journal, unsafe_code_execution, model, rated)
        else:
            records = run_likelihood(before_options(items, shots), model or _open_scorer(config), journal)
            rate_choices(records, items, benchmark.metric, calibration)
        results = summarise(benchmark, records, drops)
        _add_trust(results, records, folder, measure, calibration)
        results["model"], results["config"] = config.model, json.loads(json.dumps(config.to_dict()))  # as read back
        results |= figures | asked_for.binned(benchmark, items, records, config, baseline, folder)
        write_results(folder, records, results)
        if not results["missing"]:
            stage.finish({"questions": results["questions"]})
    return results


def _answered(
    benchmark: Generation,
    items: list[Item],
    asked: Asked,
    config: ConfigDict,
    journal: Journal,
    unsafe: bool,
    model: LanguageModel | None,
    rated: tuple[str, Calibration | None],
) -> tuple[list[Record], dict[str, Any]]:
    """Returns the records of a benchmark answered in text, and the figures on them that need the model.

    `rated` is the measure of confidence and its calibration.
    """
    grader = benchmark.grader(GraderOptions(config.grader.workers, config.grader.seconds or None, unsafe))
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(grader))
        if model is None:
            model = stack.enter_context(contextlib.closing(models.open_for_answers(config)))
        split = asked_for.splitter(config)
        records = run_generation(items, model, asked, grader, journal, split)
        if rated[0]:
            rate_answers(records, items, *rated, model, asked.request, split, journal)
        return records, asked_for.answered(records, items, config, grader, model, asked, journal)


def _add_trust(
    results: dict[str, Any], records: list[Record], folder: Path, measure: str, calibration: Calibration | None
) -> None:
    """Adds what the confidences are worth to the results, and draws it."""
    field = FIELDS.get(results["metric"], "correct")
    if measure and (trust := report.summarise(records, field, measure, calibration)) is not None:
        results["trust"] = trust
        report.plot(trust, folder / report.PLOT)


def _open_scorer(config: ConfigDict) -> LikelihoodModel:
    compute = config.compute
    return models.open_scorer(
        config.model,
        dtype=compute.dtype,
        max_length=compute.max_length or None,
        tokens_per_batch=compute.tokens_per_batch,
    )


def _params(config: ConfigDict, measure: str = "") -> SamplingParams:
    """Returns the sampling parameters; SamplingParams checks their ranges."""
    fields = config.sampling.to_dict() | ({"logprobs": 0} if needs_logprobs(measure) else {})
    try:
        return SamplingParams(**{**fields, "stop": tuple(fields["stop"])})
    except ValueError as error:
        raise UserError(f"config.{str(error).replace('sampling: ', 'sampling.')}") from error


# What may differ between two starts of one evaluation: which questions, how fast, how they are judged and what is reported.
# Answers are filed under the text of the question, so other data does no harm.
_FREE = ("limit", "grader", "cache", "server", "data", "split", "confidence", "agreement", "difficulty", "cost")


def identity(config: ConfigDict) -> dict[str, Any]:
    """Returns what must be the same for answers on disk to be used."""
    fields = {key: value for key, value in config.to_dict().items() if key not in _FREE}
    fields["compute"] = {key: config.compute[key] for key in ("dtype", "max_length")}
    fields["files"] = _stamp(config.model)
    measure, _ = settled(config, answers=isinstance(find(config.benchmark), Generation))
    if needs_logprobs(measure):  # answers without them would not do
        fields["logprobs"] = True
    return fields


def _stamp(model: str) -> str:
    """Tells a model's files from later ones of the same name; empty for what is no file here."""
    path = Path(model).expanduser()
    patterns = ("*.safetensors", "checkpoints/*", "metadata/metadata") if path.is_dir() else ()
    files = sorted(file for pattern in patterns for file in path.glob(pattern)) or ([path] if path.is_file() else [])
    known = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(known).encode()).hexdigest()[:16] if known else ""


def default_folder(config: ConfigDict) -> Path:
    """Returns where results go if no folder is named: the same for the same evaluation, so that a second start goes on."""
    name = Path(config.model).name if Path(config.model).exists() else config.model
    readable = "".join(c if c.isalnum() or c in "-._" else "-" for c in name).strip("-")
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / "evals" / f"{config.benchmark}-{readable}-{digest}"
