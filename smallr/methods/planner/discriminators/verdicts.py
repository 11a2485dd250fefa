"""Finds the verdicts in what a reasoning discriminator wrote, and the steps that wrote them."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator

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
      tokens: how many tokens had been written when its object was complete; None likewise.
    """

    correct: bool
    step: int | None = None
    probability: float | None = None
    tokens: int | None = None

    @property
    def soft(self) -> float | None:
        """Returns the probability that the plan is correct: p for `true`, 1 - p for `false`."""
        return self.probability if self.probability is None or self.correct else 1.0 - self.probability


def read_verdicts(sample: Sample) -> list[Verdict]:
    """Returns the valid JSON objects with a boolean `correct`, wherever they stand, in their order: the last one wins.

    The tokens themselves, as they were decoded, make up the text that is searched: so the step of the value is known by
    what came before it, and nothing is tokenised again. A value in several tokens is decided by the first of them.
    """
    if sample.logprobs is None:
        return [Verdict(correct) for correct, _, _ in _values(sample.text)]
    ends = list(itertools.accumulate(len(each.token) for each in sample.logprobs))
    found = []
    for correct, position, end in _values("".join(each.token for each in sample.logprobs)):
        step, last = bisect.bisect_right(ends, position), bisect.bisect_left(ends, end)
        found.append(Verdict(correct, step, math.exp(sample.logprobs[step].logprob), last + 1))
    return found


def _values(text: str) -> Iterator[tuple[bool, int, int]]:
    """Yields the value of each verdict, where it begins, and the end of its object."""
    for match in re.finditer(r"\{", text):
        try:
            value, end = _DECODER.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value.get(KEY), bool):
            written = [each.end() for each in _VALUE.finditer(text, match.start(), end)]
            if written:
                yield value[KEY], written[-1], end
