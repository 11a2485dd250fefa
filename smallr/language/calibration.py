"""Turns a measure of confidence into a probability of being right, as a fit on labelled answers has found it.

A calibration is a file of JSON beside a model (`calibration.json`). `smallr calibrate` writes it
(`smallr.evals.trust.fitting`); evaluate, generate and serve apply it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from smallr.core.errors import UserError
from smallr.core.files import read_json, write_json
from smallr.language.drift import Distribution

FILE = "calibration.json"
METHODS = ("temperature", "isotonic")
CLIP = 1e-6  # how near to 0 and 1 a confidence may come before its logit is taken
_FIELDS = {"method": str, "measure": str, "benchmark": str, "parameters": dict, "fitted_on": dict, "reference": dict}
_FITTED_ON = {"data": str, "split": str}  # that reports name


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Maps a measured confidence to a calibrated one.

    Attributes:
      method: "temperature": sigmoid(logit(confidence) / temperature), or for the measure "choice" the softmax of the
        options' scores / temperature; "isotonic": a rising line through points.
      measure: the measure that it is for.
      benchmark: whose answers it was fitted on; its grader says what an answer is.
      parameters: {"temperature"}, or {"confidence", "probability"}: the points.
      fitted_on: data, split, model, and numbers of questions and answers.
      questions: digests of the questions, so that nobody reports figures on them by mistake.
      confidence, length: distributions of calibrated confidences and of tokens, for `drift`.
    """

    method: str
    measure: str
    benchmark: str
    parameters: dict[str, Any]
    fitted_on: dict[str, Any]
    questions: tuple[str, ...]
    confidence: Distribution
    length: Distribution | None

    def apply(self, values: Sequence[float]) -> np.ndarray:
        """Returns calibrated confidences. Zero, which stands for no answer at all, stays zero."""
        values = np.asarray(values, float)
        return np.where(values > 0, apply(self.method, self.parameters, values), 0.0)

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        reference = {"confidence": dataclasses.asdict(self.confidence)}
        if self.length is not None:
            reference["length"] = dataclasses.asdict(self.length)
        fields = {name: getattr(self, name) for name in ("method", "measure", "benchmark", "parameters", "fitted_on")}
        write_json(path, fields | {"questions": list(self.questions), "reference": reference})


def apply(method: str, parameters: dict[str, Any], values: np.ndarray) -> np.ndarray:
    """Returns what a method makes of confidences."""
    if method == "temperature":
        from scipy import special  # here, since most models have no calibration

        return special.expit(special.logit(np.clip(values, CLIP, 1 - CLIP)) / parameters["temperature"])
    return np.interp(values, parameters["confidence"], parameters["probability"])


def read(path: Path) -> Calibration:
    """Reads a calibration, or the one in a folder.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path}: there is no calibration; smallr calibrate EVALUATION writes one")
    fields = read_json(path, fields=_FIELDS)
    try:
        reference = {name: Distribution.read(each) for name, each in fields["reference"].items()}
        found = Calibration(
            **{name: fields[name] for name in ("method", "measure", "benchmark", "parameters", "fitted_on")},
            questions=tuple(fields.get("questions", ())),
            confidence=reference["confidence"],
            length=reference.get("length"),
        )
        _check(found)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}): write it again with smallr calibrate"
        ) from error
    return found


def _check(calibration: Calibration) -> None:
    if calibration.method not in METHODS:
        raise ValueError(f"the method must be one of: {', '.join(METHODS)}, not {calibration.method!r}")
    for name, kind in _FITTED_ON.items():
        if not isinstance(calibration.fitted_on[name], kind):
            raise ValueError(f"fitted_on: {name} is no {kind.__name__}")
    if not all(isinstance(each, str) for each in calibration.questions):
        raise ValueError("questions holds more than digests")
    if calibration.method == "temperature":
        temperature = calibration.parameters["temperature"]
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature {temperature} is not above 0")
        return
    x, y = (np.asarray(calibration.parameters[name]) for name in ("confidence", "probability"))
    if x.ndim != 1 or x.shape != y.shape or not len(x) or not all(((z >= 0) & (z <= 1)).all() for z in (x, y)):
        raise ValueError("its points are not pairs of numbers from 0 to 1")
    if (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
        raise ValueError("its points do not rise")


def of_model(model: str) -> Calibration | None:
    """Returns the calibration that was saved with a run or a folder; None if there is none, or no model is named."""
    folder = Path(model).expanduser()
    return read(folder) if model and (folder / FILE).is_file() else None


def warn_if_of_another(calibration: Calibration, model: str) -> None:
    """Logs a warning where a calibration was fitted on answers of another model, as far as names tell."""
    fitted = str(calibration.fitted_on.get("model", model))
    if fitted != model and Path(fitted).expanduser().resolve() != Path(model).expanduser().resolve():
        logging.warning(
            "the calibration was fitted on answers of %s, not of %s: its figures may mean nothing", fitted, model
        )
