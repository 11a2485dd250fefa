"""Parameters of draws that are none: each is refused by name."""

from __future__ import annotations

import pytest

from smallr.sampling.requests import SamplingParams

NAN, HUGE = float("nan"), 2**70
WRONG = {
    "max_tokens": [-1, HUGE, 1.5, None, True, "x"], "temperature": [-1, 1e9, NAN, float("inf"), "x", None],
    "top_k": [-1, 2**31, 1.5], "top_p": [0, -1, 1.1, NAN], "min_p": [-1, 2, NAN], "n": [0, HUGE, 1.5],
    "seed": [2**63, HUGE, 1.5, "x"], "round": [-1, 2**31], "logprobs": [-1, 10**6, 1.5],
    "stop": ["x", ("",), (1,)], "stop_token_ids": [(-1,), (2**31,), (1.5,), ("x",)],
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_values_that_are_none_are_refused_by_name(name):
    for value in WRONG[name]:
        with pytest.raises(ValueError, match=rf"sampling: {name} must"):
            SamplingParams(**{name: value})
