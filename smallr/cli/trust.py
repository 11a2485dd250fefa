"""Holds the flags with which generate and serve say how sure a model is of its answers."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallr.cli.parsing import Parser
from smallr.core.errors import UserError
from smallr.data.orders import ORDERS

if TYPE_CHECKING:
    from smallr.language.calibration import Calibration
    from smallr.language.trust import Rater
    from smallr.sampling.requests import Request, Result

_FLAGS = ("confidence", "answer", "calibration", "order", "separator")
DEFAULT = "answer"  # the measure where a threshold is given and nothing else


def flags(parser: Parser) -> None:
    """Adds the flags that both commands share; each has a threshold of its own."""
    measures = ("answer", "answer_joint", "majority", "p_true")
    parser.flag("confidence", None, "how sure the model is of each answer: this measure", choices=measures)
    parser.flag(
        "answer",
        None,
        "what of a text is the answer: as a benchmark reads it, or text, or all; by default the calibration's",
    )
    parser.flag(
        "calibration", None, "file of smallr calibrate; by default the one in the model's folder; none: not even that"
    )
    parser.flag(
        "order",
        None,
        "say too whether the rationale leads to the answer; what a text begins with; needs --answer=BENCHMARK",
        choices=ORDERS,
    )
    parser.flag("separator", "", "what the model writes between the two, such as '-->'")


def named(options: Namespace, threshold: str) -> str:
    """Returns the first of the flags that was given; empty for none."""
    return next((name for name in (*_FLAGS, threshold) if name in options.given), "")


def make_rater(options: Namespace, threshold: str) -> tuple[Rater | None, Callable[[], None]]:
    """Returns what rates answers, and what ends its processes; no rater where nobody asks and there is no calibration.

    Args:
      options: of the command line.
      threshold: name of the command's threshold.

    Raises:
      UserError: flags that do not fit, or a calibration that is damaged or not for texts.
    """
    if options.separator and not options.order:
        raise UserError("--separator: it has no effect without --order=answer_first or rationale_first")
    calibration = _calibration(options)
    wanted = options.answer or options.order or getattr(options, threshold) is not None
    measure = options.confidence or (calibration.measure if calibration else DEFAULT if wanted else "")
    if not measure:
        return None, _nothing
    from smallr.evals.trust.agreement import judge
    from smallr.evals.trust.answers import SHORT_TEXT, WHOLE, extractor, grader_of, reading
    from smallr.evals.trust.parts import split
    from smallr.language.trust import Rater

    name = options.answer or (calibration.benchmark if calibration else SHORT_TEXT)
    if not options.order:
        extract, end = extractor(name)
        return Rater(measure, extract, calibration), end
    if name in (SHORT_TEXT, WHOLE):
        raise UserError(
            f"--order={options.order}: a benchmark says what an answer is, so that rationale and answer can be compared; "
            "give one, such as --answer=gsm8k"
        )
    grader, order = grader_of(name), (options.order, options.separator)
    extract = reading(grader, lambda text: split(text, *order))
    return Rater(measure, extract, calibration, judge(*order, grader)), grader.close


def _calibration(options: Namespace) -> Calibration | None:
    from smallr.language import calibration as calibrations

    if options.calibration == "none":
        return None
    if options.calibration:
        found = calibrations.read(Path(options.calibration).expanduser())
        if found.measure not in ("answer", "answer_joint", "majority", "p_true"):
            raise UserError(
                f"--calibration={options.calibration} is for options by likelihood ({found.benchmark}); texts need one of an "
                "evaluation that is answered in text"
            )
        calibrations.warn_if_of_another(found, options.model or "")
        return found
    found = calibrations.of_model(options.model or "")
    # A majority needs several samples, so it must be asked for: other requests go on as they were.
    own_will = None if found is None or found.measure == "majority" else found.measure
    fits = found is not None and found.measure != "choice" and (options.confidence or own_will) == found.measure
    return found if fits else None


def _nothing() -> None:
    """Ends nothing."""


def rated(
    rater: Rater,
    requests: Sequence[Request],
    results: Sequence[Result],
    complete: Callable[[list[Request]], Sequence[Result]],
    below: float | None,
) -> list[list[dict[str, Any]]]:
    """Returns the fields of each sample of each result: confidence, agreement and, with a threshold, abstain."""
    from smallr.language.trust import fields, rate_with

    ratings = rate_with(rater, requests, results, complete)
    return [[fields(rating, below, "abstain") for rating in each] for each in ratings]


def marked(results: Sequence[Result], extra: Sequence[Sequence[dict[str, Any]]], below: float | None) -> list[Result]:
    """Returns results for people: the confidence behind each text, or why there is no answer."""

    def text(written: str, fields: dict[str, Any]) -> str:
        if fields.get("abstain"):
            return f"[no answer: the confidence of {fields['confidence']:.2f} is below {below:.2f}]"
        return f"{written.strip()}\n[confidence {fields['confidence']:.2f}]"

    return [
        replace(
            result,
            samples=tuple(
                replace(s, text=text(s.text, fields)) for s, fields in zip(result.samples, mine, strict=True)
            ),
        )
        for result, mine in zip(results, extra, strict=True)
    ]
