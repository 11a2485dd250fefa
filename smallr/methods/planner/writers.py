"""Generators: a language model that writes plans, or plans that are given and drawn from."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence

from smallr.agents.agent import encodable, is_at_fault
from smallr.core.stages import Stopped
from smallr.language.base import LanguageModel
from smallr.methods.planner.task import Candidate, Draft, Problem
from smallr.sampling.requests import Request, Result, SamplingParams


class ModelWriter:
    """Has a language model write plans; a prefix is the beginning of its answer.

    Args:
      model: any.
      params: of its samples; greedy for a single one.
      seed: of the run.
    """

    def __init__(self, model: LanguageModel, params: SamplingParams, seed: int = 0):
        self._model, self._params, self._seed = model, params, seed

    def __call__(self, problem: Problem, draft: Draft) -> list[str]:
        """Writes the plans of one draft."""
        (texts,) = self.write_all([draft])
        return texts

    def write_all(self, drafts: Sequence[Draft]) -> list[list[str]]:
        """Writes the plans of many drafts at once; none for a draft that the model cannot read.

        Raises:
          Stopped: a draft got no reply, for no fault of its own.
        """
        results = self._model.complete_sync([self._request(draft) for draft in drafts])
        return [_texts(draft, result) for draft, result in zip(drafts, results, strict=True)]

    def _request(self, draft: Draft) -> Request:
        begun = ({"role": "assistant", "content": draft.prefix},) if draft.prefix else ()
        params = {**vars(self._params), "n": draft.count, "seed": self._seed, "round": draft.round}
        if draft.count == 1:
            params["temperature"] = 0.0
        messages = ({"role": "user", "content": encodable(draft.prompt)}, *begun)
        return Request(messages=messages, params=SamplingParams(**params))


def _texts(draft: Draft, result: Result) -> list[str]:
    if result.error is None:
        return [draft.prefix + encodable(sample.text) for sample in result.samples]
    if not is_at_fault(result.error):
        raise Stopped(f"the generator gave no reply ({result.error}); the same command asks again")
    return []


class GivenWriter:
    """Draws from given plans, as often as they were proposed: a generator whose distribution is known.

    A single plan is the one that was proposed most often. A prefix leaves the plans that begin with it, and a rejected
    plan is not drawn again. A draw is a function of the seed, the problem and the draft.

    Args:
      given: by the problem's id.
      seed: of the draws.
    """

    def __init__(self, given: Mapping[str, Sequence[Candidate]], seed: int = 0):
        self._given, self._seed = given, seed

    def __call__(self, problem: Problem, draft: Draft) -> list[str]:
        """Draws the plans of one draft."""
        known = [
            each
            for each in self._given[problem.id]
            if each.plan.startswith(draft.prefix) and each.plan != draft.rejected
        ]
        if not known:
            return []
        if draft.count == 1:
            return [max(known, key=lambda each: each.votes).plan]
        key = f"{self._seed}\0{problem.id}\0{draft.prefix}\0{draft.rejected}\0{draft.round}"
        rng = random.Random(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest())
        return rng.choices([each.plan for each in known], [each.votes for each in known], k=draft.count)
