"""Rates the answers of a model: how sure it is, calibrated if there is a calibration."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

from smallr.core.errors import UserError
from smallr.language import confidence
from smallr.language.calibration import Calibration
from smallr.language.confidence import FROM_LOGPROBS, MEASURES, WITHOUT_LOGPROBS, Answer, Extract
from smallr.sampling.requests import Request, Result, Sample

TOO_LONG = re.compile(r"max_length|max_model_len|context[ _-]?(length|window)|too long", re.IGNORECASE)  # of a prompt

# Whether the rationale of a text leads to the answer that it gives; None where that cannot be said.
Agrees = Callable[[str, Answer | None], bool | None]


@dataclasses.dataclass(frozen=True)
class Rating:
    """Says how far one sample can be relied on.

    Attributes:
      confidence: calibrated, or as measured where there is no calibration.
      measured: before calibration.
      answer: that the sample gives.
      agreement: whether its rationale leads to that answer; None if nobody asked.
    """

    confidence: float
    measured: float
    answer: Answer | None
    agreement: bool | None = None


class Rater:
    """Rates the samples of results.

    Args:
      measure: one of `confidence.MEASURES`.
      extract: finds the answers of texts; it may be called from any thread.
      calibration: for the same measure.
      agrees: says whether a rationale leads to its answer.

    Raises:
      UserError: no such measure, or a calibration of another one.
    """

    def __init__(
        self, measure: str, extract: Extract, calibration: Calibration | None = None, agrees: Agrees | None = None
    ):
        check_measure(measure)
        if calibration is not None and calibration.measure != measure:
            raise UserError(
                f"the calibration is for the measure {calibration.measure!r}, not {measure!r}: ask for that one, or fit another"
            )
        self.measure, self.calibration = measure, calibration
        self._extract, self._agrees = extract, agrees

    def asking(self, request: Request) -> Request:
        """Returns the request with what the measure needs of the completion itself.

        Raises:
          UserError: one sample where a majority is asked for.
        """
        if self.measure == "majority" and request.params.n < 2:
            raise UserError("n: the confidence is the share of samples with the same answer, so n must be 2 or more")
        if self.measure not in FROM_LOGPROBS or request.params.logprobs is not None:
            return request
        return dataclasses.replace(request, params=dataclasses.replace(request.params, logprobs=0))

    def answers(self, result: Result) -> list[Answer | None]:
        """Returns the answers of a result's samples."""
        return self._extract([sample.text for sample in result.samples])

    def verdicts(self, request: Request, result: Result, answers: Sequence[Answer | None]) -> dict[str, Request]:
        """Returns what else must be asked, by the answer's value; nothing but for the measure p_true."""
        return confidence.verdict_requests(request, result.samples, answers) if self.measure == "p_true" else {}

    def rate(self, result: Result, answers: Sequence[Answer | None], verdicts: dict[str, Result]) -> list[Rating]:
        """Returns a rating for each sample.

        Raises:
          UserError: the model gave no log-probs, or no verdict.
        """
        given = {value: confidence.p_true(given_verdict(verdict).samples[0]) for value, verdict in verdicts.items()}
        if self.measure in FROM_LOGPROBS and any(sample.logprobs is None for sample in result.samples):
            raise UserError(no_logprobs(self.measure))
        asked = confidence.verdicts_of(answers, given) if self.measure == "p_true" else None
        values = [each[self.measure] for each in confidence.measured(result.samples, answers, asked)]
        calibrated = values if self.calibration is None else self.calibration.apply(values).tolist()
        agreements = [
            self._agrees(sample.text, answer) if self._agrees else None
            for sample, answer in zip(result.samples, answers, strict=True)
        ]
        return [Rating(*each) for each in zip(calibrated, values, answers, agreements, strict=True)]


def check_measure(measure: str, measures: Sequence[str] = MEASURES) -> None:
    """Raises UserError unless there is such a measure."""
    if measure not in measures:
        raise UserError(f"confidence {measure!r} must be one of: {', '.join(measures)}")


def no_logprobs(measure: str) -> str:
    """Says what remains where a model gives no log-probs."""
    return (
        f"the model gives no log-probs, and the confidence {measure!r} is made of them; without them there is "
        f"{', '.join(WITHOUT_LOGPROBS)}, the share of several samples with the same answer"
    )


def given_verdict(verdict: Result) -> Result:
    """Returns the result of a verdict; where its prompt is too long for the model, one that says neither true nor false.

    Raises:
      UserError: it failed for another reason.
    """
    if verdict.error is None:
        return verdict
    if TOO_LONG.search(verdict.error):
        return Result((Sample("", "length"),))
    raise UserError(no_logprobs("p_true") if "prob" in verdict.error else f"a verdict failed: {verdict.error}")


def rate_with(
    rater: Rater, requests: Sequence[Request], results: Sequence[Result], complete: Callable[[list[Request]], Sequence]
) -> list[list[Rating]]:
    """Rates many results at once; results with an error have no ratings.

    Args:
      rater: of the measure.
      requests: what was asked.
      results: their results.
      complete: answers the verdicts, all in one call.
    """
    answers = [rater.answers(result) for result in results]
    wanted = [rater.verdicts(*each) for each in zip(requests, results, answers, strict=True)]
    flat = [request for each in wanted for request in each.values()]
    given = iter(complete(flat) if flat else ())
    found = []
    for result, mine, asked in zip(results, answers, wanted, strict=True):
        found.append(rater.rate(result, mine, {value: next(given) for value in asked}))
    return found


def fields(rating: Rating, below: float | None, word: str = "escalate") -> dict[str, Any]:
    """Returns the extension fields of a reply."""
    said = {"confidence": round(rating.confidence, 6), "agreement": rating.agreement}
    return said if below is None else said | {word: rating.confidence < below}
