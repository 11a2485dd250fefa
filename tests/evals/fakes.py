"""Models whose answers are known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from smallr.language.base import Progress, Totals
from smallr.sampling.requests import Request, Result, Sample, Usage

Answer = Callable[[str], Sequence[str] | str]


class FakeModel:
    """Answers with `answer(prompt)`: one text, or one for each sample; an exception's text is the result's error."""

    name, totals = "fake", Totals()

    def __init__(self, answer: Answer, finish_reason: str = "stop"):
        self._answer, self._finish = answer, finish_reason
        self.requests: list[Request] = []
        self.closed = False

    async def complete(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[Result]:
        results: dict[int, Result] = {}
        for index in reversed(range(len(requests))):  # results come in any order
            self.requests.append(requests[index])
            results[index] = self._one(requests[index])
            if progress is not None:
                progress(index, results[index])
        return [results[index] for index in range(len(requests))]

    def complete_sync(self, requests: Sequence[Request], *, progress: Progress | None = None) -> list[Result]:
        return asyncio.run(self.complete(requests, progress=progress))

    def close(self) -> None:
        self.closed = True

    def _one(self, request: Request) -> Result:
        prompt = request.messages[0]["content"] if request.messages else request.prompt
        try:
            texts = self._answer(prompt)
        except ValueError as error:
            return Result(error=str(error))
        texts = [texts] * request.params.n if isinstance(texts, str) else list(texts)
        samples = tuple(Sample(text, self._finish, tuple(range(len(text.split())))) for text in texts)
        return Result(samples, Usage(len(prompt.split()), sum(len(sample.token_ids) for sample in samples)))


class FakeScorer:
    """The log-likelihood of a continuation is `value(context, continuation)`."""

    def __init__(self, value: Callable[[str, str], float]):
        self._value = value
        self.asked: list[tuple[str, str]] = []

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        self.asked += pairs
        return [(self._value(*pair), False) for pair in pairs]
