"""Judges by reasoning: a model walks through the plan and ends with a verdict in JSON."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

from smallr.agents.agent import is_at_fault
from smallr.core.stages import Stopped
from smallr.language.base import LanguageModel
from smallr.methods.planner.discriminators.base import Case, Judgement
from smallr.methods.planner.discriminators.verdicts import read_verdicts
from smallr.methods.planner.prompts import JudgePrompt
from smallr.sampling.requests import Request, Result, SamplingParams

THINK = "<think>\n"


class Reasoning:
    """Asks a language model, greedily, whose answer is begun with an open think tag.

    Args:
      model: any; soft scores need one that gives log-probs.
      prompt: writes the prompts.
      identity: of the model, for `digest`.
      budget: tokens that it may write.
      opening: what its answer begins with; empty for a server that cannot go on with a begun answer.
    """

    def __init__(
        self, model: LanguageModel, prompt: JudgePrompt, *, identity: str, budget: int = 512, opening: str = THINK
    ):
        self._model, self._prompt, self._identity = model, prompt, identity
        self._opening = opening
        self._params = SamplingParams(max_tokens=budget, logprobs=0)

    @property
    def digest(self) -> str:
        """See `Discriminator.digest`."""
        return f"reasoning {self._identity} {self._prompt.digest} {self._params.max_tokens} {self._opening!r}"

    def judge(self, cases: Sequence[Case]) -> Iterator[tuple[int, list[Judgement]]]:
        """See `Discriminator.judge`.

        Raises:
          Stopped: a request got no reply, for no fault of its own.
        """
        places = [(index, plan) for index, case in enumerate(cases) for plan in range(len(case.plans))]
        requests = [self._request(cases[index], plan) for index, plan in places]
        found: dict[int, dict[int, Judgement]] = {index: {} for index in range(len(cases))}
        for number, result in _as_they_come(self._model, requests):
            index, plan = places[number]
            found[index][plan] = _judgement(result)
            if len(found[index]) == len(cases[index].plans):
                yield index, [found[index][each] for each in range(len(cases[index].plans))]
        yield from ((index, []) for index, case in enumerate(cases) if not case.plans)

    def _request(self, case: Case, plan: int) -> Request:
        text = self._prompt.render(case.problem, case.plans[plan], case.outcomes[plan])
        begun = ({"role": "assistant", "content": self._opening},) if self._opening else ()
        return Request(messages=({"role": "user", "content": text}, *begun), params=self._params)


def _judgement(result: Result) -> Judgement:
    if result.error is not None:
        if not is_at_fault(result.error):
            raise Stopped(f"a candidate got no verdict ({result.error}); the same command asks again")
        return Judgement(error=result.error)
    (sample,) = result.samples
    verdicts, usage = read_verdicts(sample), result.usage
    counts = {"text": sample.text, "prompt_tokens": usage.prompt_tokens, "tokens": usage.completion_tokens}
    timed = tuple((each.tokens, each.correct, each.soft) for each in verdicts if each.tokens is not None)
    if not verdicts:
        return Judgement(**counts)
    return Judgement(verdicts[-1].correct, verdicts[-1].soft, verdicts=timed, **counts)


def _as_they_come(model: LanguageModel, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
    """Yields results while others are still written, so that what is finished can be kept."""
    if not requests:
        return
    results: queue.Queue[tuple[int, Result] | BaseException | None] = queue.Queue()

    def ask() -> None:
        try:
            model.complete_sync(requests, progress=lambda index, result: results.put((index, result)))
        except BaseException as error:  # raised in the thread that reads the results
            results.put(error)
        else:
            results.put(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    while (item := results.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item
    thread.join()
