"""Adds to replies how sure the model is, and passes answers on that are not sure enough."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

from absl import logging

from smallr.core.errors import UserError
from smallr.language import trust
from smallr.language.base import LanguageModel
from smallr.language.serving.errors import BadRequest
from smallr.language.serving.metrics import Metrics
from smallr.language.trust import Rater, Rating
from smallr.sampling.requests import Request, Result

Complete = Callable[[Request], Awaitable[Result]]
PATIENCE = 120.0  # seconds that a client waits for the larger model, all attempts together


@dataclasses.dataclass(frozen=True)
class Trusted:
    """Holds what a client gets.

    Attributes:
      result: of the served model, or with samples of the larger one in place of those it was not sure of.
      fields: extension fields of each choice: confidence, agreement, escalate, and who answered if that was another.
    """

    result: Result
    fields: tuple[dict[str, Any], ...]


class ServedTrust:
    """Rates the answers of a served model.

    Args:
      rater: of the measure.
      escalate_below: confidence below which `escalate` is true; None for never.
      larger: to whom such answers are passed on; None for nobody. It is not closed here.
      metrics: that count.
      patience: seconds to wait for the larger model.
    """

    def __init__(
        self,
        rater: Rater,
        *,
        escalate_below: float | None = None,
        larger: LanguageModel | None = None,
        metrics: Metrics | None = None,
        patience: float = PATIENCE,
    ):
        self._rater, self._below, self._larger, self._metrics = rater, escalate_below, larger, metrics
        self._patience = patience
        calibration = rater.calibration
        if metrics is not None:
            metrics.follow(calibration.confidence if calibration else None, calibration.length if calibration else None)

    @property
    def replaces(self) -> bool:
        """Returns whether an answer may be another model's, so that it cannot be streamed while it grows."""
        return self._larger is not None

    def asking(self, request: Request) -> Request:
        """Returns the request with what the measure needs.

        Raises:
          BadRequest: it cannot be rated.
        """
        try:
            return self._rater.asking(request)
        except UserError as error:
            raise BadRequest(str(error), param="n") from error

    async def rated(self, request: Request, result: Result, complete: Complete) -> Trusted:
        """Rates a result of `asking(request)`, and passes on what is not sure enough.

        Args:
          request: as the client sent it.
          result: without an error.
          complete: asks the served model for a verdict.

        Raises:
          BadRequest: it cannot be rated.
        """
        try:
            ratings = await self._ratings(request, result, complete)
        except UserError as error:
            raise BadRequest(str(error)) from error
        fields = [trust.fields(rating, self._below) for rating in ratings]
        plain = _as_asked(result, request)
        self._count(result, ratings, fields)
        if self._larger is not None and any(each["escalate"] for each in fields):
            plain = await self._passed_on(request, plain, fields)
        return Trusted(plain, tuple(fields))

    async def _ratings(self, request: Request, result: Result, complete: Complete) -> list[Rating]:
        answers = await asyncio.to_thread(self._rater.answers, result)
        wanted = self._rater.verdicts(request, result, answers)
        verdicts = dict(zip(wanted, await asyncio.gather(*map(complete, wanted.values())), strict=True))
        return await asyncio.to_thread(self._rater.rate, result, answers, verdicts)  # a grader may take its time

    def _count(self, result: Result, ratings: list[Rating], fields: list[dict[str, Any]]) -> None:
        if self._metrics is None:
            return
        tokens = result.usage.completion_tokens / max(len(ratings), 1)
        for sample, rating, each in zip(result.samples, ratings, fields, strict=True):
            length = len(sample.token_ids) or tokens
            self._metrics.rated(rating.confidence, length, each.get("escalate", False), rating.agreement)

    async def _passed_on(self, request: Request, result: Result, fields: list[dict[str, Any]]) -> Result:
        """Puts the larger model's samples in the place of those that escalate; where it fails the old ones stay."""
        places = [index for index, each in enumerate(fields) if each["escalate"]]
        params = dataclasses.replace(request.params, n=len(places))
        other = await self._larger_result(dataclasses.replace(request, params=params))
        if other.error is not None:
            logging.warning("an answer could not be passed on to %s: %s", self._larger.name, other.error)
            for index in places:
                fields[index]["escalation_error"] = f"{self._larger.name} did not answer"
            return result
        samples = list(result.samples)
        for index, sample in zip(places, other.samples, strict=True):
            samples[index] = sample
            fields[index]["answered_by"] = self._larger.name
        return dataclasses.replace(result, samples=tuple(samples), usage=result.usage + other.usage)

    async def _larger_result(self, request: Request) -> Result:
        if not request.messages and not isinstance(request.prompt, str):
            return Result(error="the prompt is token ids, which say something else in another vocabulary")
        try:
            async with asyncio.timeout(self._patience):
                (result,) = await self._larger.complete([request])
        except TimeoutError:
            return Result(error=f"no answer within {self._patience:g} s")
        except UserError as error:  # it is down, or refuses the key
            return Result(error=str(error))
        return result


def _as_asked(result: Result, request: Request) -> Result:
    """Returns a result without the log-probs that the client did not ask for."""
    if request.params.logprobs is not None:
        return result
    samples = tuple(dataclasses.replace(sample, logprobs=None) for sample in result.samples)
    return dataclasses.replace(result, samples=samples, prompt_logprobs=None)
