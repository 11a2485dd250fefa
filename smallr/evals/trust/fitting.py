"""Fits calibrations on the samples of a finished evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize, special

from smallr.core.errors import UserError
from smallr.core.files import read_json
from smallr.evals.comparison import FIELDS
from smallr.evals.records import Record
from smallr.evals.store import RESULTS, read_samples
from smallr.evals.trust.report import question_digest
from smallr.language.calibration import CLIP, FILE, METHODS, Calibration
from smallr.language.calibration import apply as apply_method
from smallr.language.drift import Distribution

# Answered questions, since samples of one say little more; isotonic regression has as many parameters as steps.
FEWEST = {"temperature": 30, "isotonic": 100}
_COLDEST, HOTTEST = 0.02, 100.0

Values = Float[np.ndarray, "N"]


def fit_temperature(confidence: Values, correct: Values) -> dict[str, Any]:
    """Finds the temperature of the confidence's logit that makes the answers' verdicts likeliest."""
    logits = special.logit(np.clip(confidence, CLIP, 1 - CLIP))
    signs = np.where(correct > 0.5, 1.0, -1.0)
    return _coolest(lambda temperature: float(np.logaddexp(0, -signs * logits / temperature).mean()))


def fit_option_temperature(scores: Sequence[Sequence[float]], gold: Sequence[int]) -> dict[str, Any]:
    """Finds the temperature of the options' scores that makes the right options likeliest."""
    rows = [(np.asarray(row, float), right) for row, right in zip(scores, gold, strict=True)]

    def loss(temperature: float) -> float:
        return float(np.mean([special.logsumexp(row / temperature) - row[right] / temperature for row, right in rows]))

    return _coolest(loss)


def _coolest(loss: Callable[[float], float]) -> dict[str, Any]:
    """Returns the temperature of least loss, which is convex in its inverse."""
    found = optimize.minimize_scalar(
        lambda logarithm: loss(float(np.exp(logarithm))),
        bounds=(np.log(_COLDEST), np.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return {"temperature": float(np.exp(found.x))}


def fit_isotonic(confidence: Values, correct: Values) -> dict[str, Any]:
    """Finds the rising step function of least squares; between its points a line is drawn, beyond them it is level."""
    x, index, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    means = np.bincount(index, correct) / counts
    y = optimize.isotonic_regression(means, weights=counts).x
    # Inside a step the points say nothing more than its ends.
    kept = np.ones(len(x), bool)
    kept[1:-1] = (y[1:-1] != y[:-2]) | (y[1:-1] != y[2:])
    return {"confidence": x[kept].tolist(), "probability": y[kept].tolist()}


def fit(folder: Path, method: str) -> Calibration:
    """Fits a calibration on a finished evaluation, whose data and split it names.

    Raises:
      UserError: no such method, an evaluation without confidences, too few answers, all of them right or all wrong.
    """
    if method not in METHODS:
        raise UserError(f"--method={method} must be one of: {', '.join(METHODS)}")
    results = read_json(folder / RESULTS, fields={"benchmark": str, "metric": str, "model": str, "config": dict})
    field = FIELDS.get(results["metric"], "correct")
    records = [record for record in read_samples(folder, field) if record["reason"] != "no result"]
    trust = results.get("trust")
    if not trust or not any(record.get("measured") is not None for record in records):
        raise UserError(f"{folder} has no confidences: evaluate with --config.confidence.measure=answer, or another")
    used = [record for record in records if record.get("measured")]  # 0 is no answer, and stays 0
    confidence, correct = (np.array([float(record[name]) for record in used]) for name in ("measured", field))
    _check(folder, method, len({record["id"] for record in used}), correct)
    calibrated, parameters = _fitted(method, used, confidence, correct)
    lengths = [record["tokens"] for record in records if record.get("tokens")]
    everything = np.concatenate([calibrated, np.zeros(len(records) - len(used))])
    return Calibration(
        method,
        trust["measure"],
        results["benchmark"],
        parameters,
        {
            "data": results["data"],
            "split": results["config"].get("split", ""),
            "model": results["model"],
            "questions": results["questions"],
            "answers": len(used),
        },
        tuple(sorted({question_digest(record) for record in records})),
        Distribution.of(everything.tolist()),
        Distribution.of(lengths) if lengths else None,
    )


def _fitted(
    method: str, records: Sequence[Record], confidence: Values, correct: Values
) -> tuple[Values, dict[str, Any]]:
    """Returns the calibrated confidences and the parameters."""
    if method == "temperature" and "scores" in records[0]:
        parameters = fit_option_temperature([r["scores"] for r in records], [r["gold"] for r in records])
        scores = [np.asarray(record["scores"]) / parameters["temperature"] for record in records]
        return np.array([special.softmax(row).max() for row in scores]), parameters
    parameters = (fit_temperature if method == "temperature" else fit_isotonic)(confidence, correct)
    return apply_method(method, parameters, confidence), parameters


def _check(folder: Path, method: str, questions: int, correct: Values) -> None:
    if questions < FEWEST[method]:
        raise UserError(
            f"{folder}: a calibration by {method} needs answers to at least {FEWEST[method]} questions, there are {questions}: "
            "evaluate more questions of the split"
            + (", or use --method=temperature" if method == "isotonic" and questions >= FEWEST["temperature"] else "")
        )
    if correct.min() == correct.max():
        word = "right" if correct[0] else "wrong"
        raise UserError(
            f"{folder}: all {len(correct)} answers are {word}, so there is nothing to fit: use another split"
        )


def places(folder: Path, model: str, out: str) -> Sequence[Path]:
    """Returns where a calibration is written: the named file, else beside the evaluation and into the model's own folder."""
    if out:
        return [Path(out)]
    own = Path(model).expanduser()
    return [folder / FILE, *([own / FILE] if own.is_dir() else [])]
