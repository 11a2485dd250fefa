"""Finds the verdict in what a reasoning discriminator wrote, and the step that wrote it."""

from __future__ import annotations

import dataclasses
import json
import math
import re

from smallr.sampling.requests import Sample

KEY = "correct"
_VALUE = re.compile(rf'"{KEY}"\s*:\s*(?=true|false)')
_DECODER = json.JSONDecoder()


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A verdict, and where it was written.

    Attributes:
      correct: what it says.
      step: index of the token that begins the value `true` or `false`; None without log-probs.
      probability: of that token, over the full vocabulary at temperature 1; None likewise.
    """

    correct: bool
    step: int | None = None
    probability: float | None = None

    @property
    def soft(self) -> float | None:
        """Returns the probability that the plan is correct: p for `true`, 1 - p for `false`."""
        return self.probability if self.probability is None or self.correct else 1.0 - self.probability


def read_verdict(sample: Sample) -> Verdict | None:
    """Returns the last valid JSON object with a boolean `correct`, wherever it stands; None if there is none.

    The tokens themselves, as they were decoded, make up the text that is searched: so the step of the value is known by
    what came before it, and nothing is tokenised again. A value in several tokens is decided by the first of them.
    """
    if sample.logprobs is None:
        found = _last_value(sample.text)
        return None if found is None else Verdict(found[0])
    found = _last_value("".join(each.token for each in sample.logprobs))
    if found is None:
        return None
    correct, position = found
    end = 0
    for step, each in enumerate(sample.logprobs):
        end += len(each.token)
        if position < end:
            return Verdict(correct, step, math.exp(each.logprob))
    raise AssertionError("the value lies in the tokens")


def _last_value(text: str) -> tuple[bool, int] | None:
    """Returns the value of the last verdict, and where it begins."""
    for match in reversed(list(re.finditer(r"\{", text))):
        try:
            value, end = _DECODER.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value.get(KEY), bool):
            written = [each.end() for each in _VALUE.finditer(text, match.start(), end)]
            if written:
                return value[KEY], written[-1]
    return None
